"""A map of the directions that dictionaries write: near each other what points the same way, clusters and an order.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features): UMAP (McInnes et al.
2018, arXiv 1802.03426) by cosine lays the decoder directions of one or several dictionaries out in the plane; HDBSCAN
(Campello et al. 2013) finds clusters in ten dimensions of the same; a third, of one dimension, gives lists an order.

A map of anything has clumps, and HDBSCAN finds as many in noise. Control: as many random directions of the same
covariance, laid out in the same way; and what is claimed is claimed of the directions themselves, how near the nearest
other one is, and how much nearer one's own cluster is than the next.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.dictionaries import Dictionary, SparseDictionary
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.latents.inputs import activations_of, coded, inputs_of, reads
from vesalius.method import method
from vesalius.metrics import bootstrap
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.logit_weights import logit_weights

FEWEST = 16
CLUSTERED, CLUSTER = 10, 3
"""Dimensions in which clusters are sought, and how many directions make one."""
NAMES = 3


@dataclass(frozen=True)
class FeatureUmap(Result):
    """One row for each direction, of all dictionaries one after another."""

    site: str
    dictionary: Int[Tensor, " latent"]
    """Which dictionary, 0 the first given."""
    latents: Int[Tensor, " latent"]
    places: Float[Tensor, "latent axis"]
    order: Int[Tensor, " latent"]
    """Its rank along the map of one dimension."""
    clusters: Int[Tensor, " latent"]
    """-1: in none."""
    nearest: Float[Tensor, " latent"]
    """Cosine with the nearest other direction."""
    random_nearest: Float[Tensor, " latent"]
    random_clusters: Int[Tensor, " latent"]
    silhouettes: list
    """How much nearer what is in a cluster is to it than to the next one, from −1 to 1; and of random ones."""
    agreement: list
    """The share of directions whose nearest neighbour favours the same tokens most; and of random ones."""
    labels: list
    """What each makes likelier."""
    sizes: list
    choices: dict

    def headlines(self) -> list[Headline]:
        low, high = bootstrap(self.nearest, seed=0, confidence=0.99)
        chance = bootstrap(self.random_nearest, seed=0, confidence=0.99)[1]
        found, random = (int(part.max()) + 1 for part in (self.clusters, self.random_clusters))
        rows = [
            Headline(
                "cosine of a direction with its nearest other, mean",
                self.nearest.mean().item(),
                self.random_nearest.mean().item(),
                (low, high),
                low > chance,
                "control: random directions of the same covariance",
            ),
            Headline(
                "clusters", found, random, note=f"of {len(self.latents)} directions; control: random ones"
            ),
            Headline(
                "share of directions in a cluster",
                (self.clusters >= 0).float().mean().item(),
                (self.random_clusters >= 0).float().mean().item(),
            ),
            Headline("silhouette of the clusters, by the directions themselves", *self.silhouettes),
        ]
        if self.agreement:
            claim = "share whose nearest direction favours the same tokens"
            rows.append(
                Headline(claim, self.agreement[0], self.agreement[1], note="control: random directions")
            )
        return rows

    def figure(self) -> Figure:
        several = len(self.sizes) > 1
        groups = [f"{self.sizes[number]} latents" for number in self.dictionary.tolist()] if several else None
        words = [
            f"{latent} · cluster {cluster}" + (f" · {label}" if label else "")
            for latent, cluster, label in zip(self.latents.tolist(), self.clusters.tolist(), self.labels)
        ]
        plane = figures.scatter(
            self.places[:, 0],
            self.places[:, 1],
            title="Directions in the plane",
            x_label="first axis of the map",
            y_label="second axis",
            labels=words,
            groups=groups,
            caption=self.choices["map"],
        )
        near = figures.histogram(
            {"directions": self.nearest, "random": self.random_nearest},
            title="The nearest other direction",
            x_label="cosine",
        )
        return figures.group([plane, near], title=f"{len(self.latents)} directions of {self.site}")


@method()
@torch.no_grad()
def feature_umap(
    model: Model,
    dictionary: Dictionary,
    *,
    others: list[str | Path | Dictionary] | None = None,
    neighbours: int = 15,
    min_dist: float = 0.05,
    seed: int = 0,
) -> FeatureUmap:
    """A map of the decoder directions of one or several dictionaries of a site, with clusters and an order.

    `others` are dictionaries shown in the same map. Raises VesaliusError if there are fewer than 16 directions,
    dictionaries of several sites, or umap-learn and scikit-learn are not installed.
    """
    opened = [dictionary, *(model.dictionary(other) for other in others or ())]
    if len({one.site for one in opened}) > 1:
        raise VesaliusError(
            f"dictionaries of {', '.join(one.site for one in opened)} were given; expected one site"
        )
    parts = [_directions(model, one) for one in opened]
    directions = torch.cat(parts)
    directions = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-12)
    if len(directions) < FEWEST:
        raise VesaliusError(f"{len(directions)} directions were given; a map needs {FEWEST} at least")
    neighbours = min(neighbours, len(directions) - 1)
    random = _random_like(directions, seed)
    nearest, random_nearest = _nearest(directions), _nearest(random)
    labels, agreement = _named(
        model, dictionary.site, [(directions, nearest[1]), (random, random_nearest[1])]
    )
    clusters, random_clusters = (_clusters(some, neighbours, seed) for some in (directions, random))
    line = _umap(directions, 1, neighbours, 0.1, seed)[:, 0]
    return FeatureUmap(
        site=dictionary.site,
        dictionary=torch.repeat_interleave(torch.tensor([len(part) for part in parts])),
        latents=torch.cat([torch.arange(len(part)) for part in parts]),
        places=_umap(directions, 2, neighbours, min_dist, seed),
        order=line.argsort().argsort(),
        clusters=clusters,
        nearest=nearest[0],
        random_nearest=random_nearest[0],
        random_clusters=random_clusters,
        silhouettes=[_silhouette(directions, clusters), _silhouette(random, random_clusters)],
        agreement=agreement,
        labels=labels,
        sizes=[len(part) for part in parts],
        choices={
            "map": f"UMAP by cosine, {neighbours} neighbours, min_dist {min_dist}, seed {seed}.",
            "clusters": f"HDBSCAN of {CLUSTER} or more in {CLUSTERED} dimensions of UMAP, min_dist 0.1",
        },
    )


def _directions(model: Model, dictionary: Dictionary) -> Float[Tensor, "latent width"]:
    if isinstance(dictionary, SparseDictionary):
        return dictionary.W_dec.float().cpu()
    rows = next(activations_of(model, reads(dictionary), inputs_of(model, contexts=1, n_images=1))).rows
    codes = coded(dictionary, rows.float().cpu())
    return torch.stack([dictionary[i].written(rows.shape[1]) for i in range(codes.width)]).float().cpu()


def _random_like(directions: Float[Tensor, "latent width"], seed: int) -> Float[Tensor, "latent width"]:
    """Directions drawn from the Gaussian of the same second moments, so that a crowded subspace is no surprise."""
    _, values, axes = torch.linalg.svd(directions, full_matrices=False)
    noise = torch.randn(len(directions), len(values), generator=torch.Generator().manual_seed(seed))
    drawn = (noise * values) @ axes
    return drawn / drawn.norm(dim=1, keepdim=True)


def _nearest(
    directions: Float[Tensor, "latent width"],
) -> tuple[Float[Tensor, " latent"], Int[Tensor, " latent"]]:
    """The largest cosine with another direction, and whose it is."""
    best = []
    for numbers in torch.arange(len(directions)).split(1024):
        cosines = directions[numbers] @ directions.T
        cosines[torch.arange(len(numbers)), numbers] = -2
        best.append(cosines.max(1))
    return torch.cat([part.values for part in best]), torch.cat([part.indices for part in best])


def _umap(
    directions: Float[Tensor, "latent width"], axes: int, neighbours: int, min_dist: float, seed: int
) -> Float[Tensor, "latent axis"]:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # on import it warns that a part of it that is not used is not installed
        try:
            import umap
        except ImportError:
            raise VesaliusError("a map needs umap-learn; install vesalius[umap]") from None
        start = "spectral" if len(directions) > 4 * CLUSTERED else "random"
        made = umap.UMAP(
            n_components=axes, n_neighbors=neighbours, min_dist=min_dist, metric="cosine",
            random_state=seed, n_jobs=1, init=start,
        ).fit_transform(directions.numpy())  # fmt: skip
    return torch.from_numpy(made).float()


def _clusters(
    directions: Float[Tensor, "latent width"], neighbours: int, seed: int
) -> Int[Tensor, " latent"]:
    from sklearn.cluster import HDBSCAN

    places = _umap(directions, CLUSTERED, neighbours, 0.1, seed).numpy()
    found = HDBSCAN(min_cluster_size=CLUSTER, copy=True)  # pyright: ignore[reportArgumentType]
    return torch.from_numpy(found.fit_predict(places)).long()


def _silhouette(directions: Float[Tensor, "latent width"], clusters: Int[Tensor, " latent"]) -> float:
    """Rousseeuw 1987, over what is in a cluster; 0 if there are not two."""
    from sklearn.metrics import silhouette_score

    inside = clusters >= 0
    if clusters.max() < 1:
        return 0.0
    return float(silhouette_score(directions[inside].numpy(), clusters[inside].numpy(), metric="cosine"))


def _named(model: Model, site: str, given: list[tuple[Tensor, Tensor]]) -> tuple[list[str], list[float]]:
    """Labels by the tokens that are made likeliest, and how often those of the nearest have one in common."""
    directions = given[0][0]
    try:
        favoured = [_favoured(model, site, some) for some, _ in given] if "tokens" in model.kinds else None
    except VesaliusError:  # it says so of a site whose way to the logits is not known
        favoured = None
    if favoured is None:
        return [""] * len(directions), []
    shared = [
        (tokens[:, :, None] == tokens[nearest][:, None]).any(2).any(1).float().mean().item()
        for tokens, (_, nearest) in zip(favoured, given)
    ]
    words = model.strings(favoured[0].flatten())
    return [" ".join(words[start : start + NAMES]) for start in range(0, len(words), NAMES)], shared


def _favoured(model: Model, site: str, directions: Float[Tensor, "latent width"]) -> Int[Tensor, "latent 3"]:
    parts = directions.split(max(1, 2**24 // model.d_vocab))
    return torch.cat(
        [logit_weights(model, site, part.to(model.device)).topk(NAMES).indices.cpu() for part in parts]
    )
