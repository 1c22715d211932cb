"""Activations whose dictionary is known: sparse sums of random unit vectors, with features inside of others.

x = Σ a_i F_i, F random unit vectors, a_i present with a probability and then uniform in 0.5..1.5. A child is present
only where its parent is; a dictionary that saves latents lets the parent's latent be silent there and writes both
vectors with the child's: feature absorption (Chanin et al. 2024, arXiv 2409.14507).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from vesalius.dictionaries.matching import matching
from vesalius.dictionaries.rows import TensorRows
from vesalius.dictionaries.sparse import SparseDictionary


@dataclass(frozen=True, eq=False)
class PlantedDictionary:
    """The directions, how often each is present, and which are children of which."""

    directions: Float[Tensor, "feature width"]
    density: Float[Tensor, " feature"]
    """Probability of a feature; of a child, given that its parent is present."""
    parents: dict[int, int]

    def sample(
        self, rows: int, *, seed: int
    ) -> tuple[Float[Tensor, "row feature"], Float[Tensor, "row width"]]:
        """Codes and activations."""
        generator = torch.Generator().manual_seed(seed)
        shape = (rows, len(self.directions))
        present = torch.rand(shape, generator=generator) < self.density
        for child, parent in self.parents.items():
            present[:, child] &= present[:, parent]
        codes = present * (0.5 + torch.rand(shape, generator=generator))
        return codes, codes @ self.directions

    def rows(self, rows: int, *, seed: int) -> TensorRows:
        """Rows to learn from."""
        return TensorRows(("planted",), (self.sample(rows, seed=seed)[1],), {"model": "planted dictionary"})


def planted_dictionary(
    *, width: int, features: int, density: float, children: int = 0, child_density: float = 0.3, seed: int = 0
) -> PlantedDictionary:
    """Random unit vectors; the last `children` features are present only within the first ones, each in its own."""
    generator = torch.Generator().manual_seed(
        seed + 577_215_664
    )  # no seed for which a dictionary starts out right
    directions = normalize(torch.randn(features, width, generator=generator))
    densities = torch.full((features,), density)
    parents = {features - children + i: i for i in range(children)}
    densities[list(parents)] = child_density
    return PlantedDictionary(directions, densities, parents)


@dataclass(frozen=True)
class Absorption:
    """What the latent of a parent does where a child is present, and where none is."""

    parent: int
    child: int
    similarity: float
    """|cosine| of the parent and its latent."""
    alone: float
    """Share of the rows with the parent alone in which its latent is active."""
    within: float
    """The same with the child."""
    written: float
    """How much of the parent's vector the child's latent writes, beyond what is in the child's; 0: nothing absorbed."""

    @property
    def absorbed(self) -> bool:
        """Whether the parent's latent is silent where the child is, and the child's writes the parent's vector."""
        return self.alone - self.within > 0.3 and self.written > 0.3


def absorption(
    planted: PlantedDictionary,
    dictionary: SparseDictionary,
    *,
    pairs: dict[int, int] | None = None,
    seed: int = 0,
) -> list[Absorption]:
    """For each child, whether the latent of its parent leaves the rows with it to the child's.

    `pairs`: children and parents other than those that were planted, as a control.
    """
    codes, acts = planted.sample(20_000, seed=seed)
    active = dictionary.encode(acts) > 0
    found = matching(dictionary.W_dec, planted.directions)
    latent_of = dict(zip(found.direction.tolist(), zip(found.latent.tolist(), found.similarity.tolist())))
    results = []
    for child, parent in (planted.parents if pairs is None else pairs).items():
        latent, similarity = latent_of[parent]
        has_parent, has_child = codes[:, parent] > 0, codes[:, child] > 0
        beyond = dictionary.W_dec[latent_of[child][0]] - planted.directions[child]
        results.append(
            Absorption(
                parent, child, similarity,
                alone=float(active[has_parent & ~has_child, latent].float().mean()),
                within=float(active[has_parent & has_child, latent].float().mean()),
                written=float(beyond @ planted.directions[parent]),
            )
        )  # fmt: skip
    return results
