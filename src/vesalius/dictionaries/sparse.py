"""A sparse dictionary: latents of which few are active at a time, however it was trained.

Sparse autoencoders (Bricken et al. 2023, transformer-circuits.pub/2023/monosemantic-features) and transcoders
(Dunefsky et al. 2024, arXiv 2406.11944) of all kinds compute the same once they are trained:

1. before = (x − b_in) W_enc + b_enc;
2. a latent is active where `before` exceeds its threshold, and if there is a `k`, only where it is among the k
   largest of its row: its code is then `before`, else 0;
3. x̂ = codes W_dec + b_dec, and x W_skip if there is a way around.

The threshold is 0 for a rectifier; JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435) learns it, Gated (arXiv
2404.16014) and BatchTopK (Bussmann et al. 2024, arXiv 2412.06410) come down to one.
"""

import json
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from math import isqrt
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from vesalius.dictionaries import stored
from vesalius.dictionaries.codes import Codes
from vesalius.dictionaries.feature import Feature
from vesalius.errors import VesaliusError

CHUNK = 2**24
"""Numbers that the activations before the threshold may take at once."""


@dataclass(frozen=True, eq=False)
class SparseDictionary:
    """One trained dictionary; `about` says how it came to be, in JSON.

    >>> dictionary = SparseDictionary.of_directions("neurons@0", torch.eye(4))
    >>> dictionary.encode(torch.tensor([1.0, -2.0, 0.0, 3.0])).tolist()
    [1.0, 0.0, 0.0, 3.0]
    """

    site: str
    """What it reconstructs."""
    W_enc: Float[Tensor, "width_in latent"]
    b_enc: Float[Tensor, " latent"]
    W_dec: Float[Tensor, "latent width"]
    b_dec: Float[Tensor, " width"]
    threshold: Float[Tensor, " latent"]
    """What `before` must exceed; never below 0."""
    k: int | None = None
    source: str = ""
    """What it reads, if that is another site."""
    b_in: Float[Tensor, " width_in"] | None = None
    W_skip: Float[Tensor, "width_in width"] | None = None
    name: str = "latent"
    about: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        read, write, latents = len(self.W_enc), self.W_dec.shape[1], self.latents
        wanted = {
            "W_enc": (read, latents), "b_enc": (latents,), "W_dec": (latents, write), "b_dec": (write,),
            "threshold": (latents,), "b_in": (read,), "W_skip": (read, write),
        }  # fmt: skip
        for part, tensor in self._tensors().items():
            if tensor.shape != wanted[part]:
                raise VesaliusError(
                    f"{part} of a dictionary is {list(tensor.shape)}; with {latents} latents between {read} and "
                    f"{write} units it would be {list(wanted[part])}"
                )
        if (self.threshold < 0).any():
            raise VesaliusError(f"a threshold of {self.threshold.min():.3g} was given; expected 0 or more")

    @classmethod
    def of_directions(
        cls,
        site: str,
        directions: Float[Tensor, "latent width"],
        *,
        k: int | None = None,
        name: str = "direction",
    ) -> "SparseDictionary":
        """Given directions as a dictionary: read and written along the same, rectified, without biases."""
        latents, width = directions.shape
        none = directions.new_zeros
        return cls(site, directions.T, none(latents), directions, none(width), none(latents), k, name=name)

    @property
    def latents(self) -> int:
        return len(self.b_enc)

    @property
    def width(self) -> int:
        """Units of the site it reconstructs."""
        return len(self.b_dec)

    @property
    def width_in(self) -> int:
        """Units of the site it reads."""
        return len(self.W_enc)

    @property
    def reads(self) -> str:
        """The site it reads."""
        return self.source or self.site

    def __len__(self) -> int:
        return self.latents

    def __repr__(self) -> str:
        between = f"{self.source} to {self.site}" if self.source else self.site
        return f"{self.name} ({self.latents} latents, {between})"

    def __getitem__(self, index: int) -> Feature:
        if not 0 <= index < self.latents:
            raise VesaliusError(f"latent {index} was asked for; this dictionary has 0 to {self.latents - 1}")
        return Feature(
            self.reads,
            index,
            read=self.W_enc[:, index],
            write=self.W_dec[index],
            label=f"{self.name}[{index}]",
            nonlinear=lambda acts: self._code(acts, index),
        )

    def pre(self, acts: Float[Tensor, "*batch width_in"]) -> Float[Tensor, "*batch latent"]:
        """What is compared with the threshold."""
        if acts.shape[-1] != self.width_in:
            raise VesaliusError(
                f"activations of {acts.shape[-1]} units were given to a dictionary of {self.width_in} at '{self.reads}'"
            )
        return self._centred(acts) @ self.W_enc + self.b_enc

    def encode(self, acts: Float[Tensor, "*batch width_in"]) -> Float[Tensor, "*batch latent"]:
        """Codes with their zeros."""
        before = self.pre(acts)
        return before.where(self._active(before), 0.0)

    def codes(self, acts: Float[Tensor, "row width_in"]) -> Codes:
        """Codes without their zeros; no more than a part of the rows is ever held with them."""
        return Codes.joined([self._sparse(part) for part in acts.split(max(1, CHUNK // self.latents))])

    def decode(self, codes: Float[Tensor, "*batch latent"] | Codes) -> Float[Tensor, "*batch width"]:
        """The sum of the directions that codes write, and `b_dec`."""
        if isinstance(codes, Codes):
            if not len(codes.latents):
                return self.b_dec.expand(len(codes), -1)
            summed = torch.nn.functional.embedding_bag(
                codes.latents, self.W_dec, codes.starts[:-1], mode="sum", per_sample_weights=codes.values
            )
            return summed + self.b_dec
        return codes @ self.W_dec + self.b_dec

    def reconstruct(self, acts: Float[Tensor, "*batch width_in"]) -> Float[Tensor, "*batch width"]:
        """What the dictionary makes of the activations it reads."""
        rows = acts.reshape(-1, acts.shape[-1])
        made = self.decode(self.codes(rows))
        if self.W_skip is not None:
            made = made + rows @ self.W_skip
        return made.reshape(*acts.shape[:-1], self.width)

    def to(self, *args) -> "SparseDictionary":
        """The same on another device or of another dtype."""
        return replace(self, **{part: tensor.to(*args) for part, tensor in self._tensors().items()})

    @cached_property
    def hash(self) -> str:
        """sha256 over all numbers, the sites and `k`."""
        return stored.hash_of(json.dumps([self.site, self.source, self.k]), self._tensors().items())

    def save(self, file: str | Path) -> Path:
        """Write a .safetensors file, under a temporary name until it is whole; `about` goes with it."""
        named = ("site", "source", "k", "name", "about")
        described = {name: getattr(self, name) for name in named}
        return stored.write(file, "dictionary", described, self._tensors())

    @classmethod
    def load(cls, file: str | Path) -> "SparseDictionary":
        """Read what `save` wrote; numbers stored in half precision come back in single.

        Raises VesaliusError if the file is not a dictionary of ours.
        """
        described, tensors = stored.read(file, "dictionary", called="a dictionary")
        single = {
            p: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for p, t in tensors.items()
        }
        return cls(**described, **single)

    def _tensors(self) -> dict[str, Tensor]:
        named = {part.name: getattr(self, part.name) for part in fields(self)}
        return {part: tensor for part, tensor in named.items() if isinstance(tensor, Tensor)}

    def _centred(self, acts: Tensor) -> Tensor:
        acts = acts.to(self.W_enc)
        return acts if self.b_in is None else acts - self.b_in

    def _active(self, before: Float[Tensor, "*batch latent"]) -> Bool[Tensor, "*batch latent"]:
        active = before > self.threshold
        if self.k is not None and self.k < self.latents:
            largest = before.topk(self.k, sorted=False).indices
            active &= torch.zeros_like(active).scatter_(-1, largest, True)
        return active

    def _sparse(self, rows: Float[Tensor, "row width_in"]) -> Codes:
        before = self.pre(rows)
        if self.k is None or self.k >= self.latents:
            return Codes.of(before.where(before > self.threshold, 0.0))
        values, latents = before.topk(self.k, sorted=False)
        active = values > self.threshold[latents]
        starts = torch.cat([active.new_zeros(1, dtype=torch.long), active.sum(1).cumsum(0)])
        return Codes(starts, latents[active], values[active], self.latents)

    def _code(self, acts: Float[Tensor, "*batch width_in"], index: int) -> Float[Tensor, "*batch"]:
        """The code of one latent; with a `k` it takes all of them to know the largest."""
        if self.k is not None:
            return self.encode(acts)[..., index]
        before = self._centred(acts) @ self.W_enc[:, index] + self.b_enc[index]
        return before.where(before > self.threshold[index], 0.0)


def rows_of(acts: Float[Tensor, "batch *axes"]) -> Float[Tensor, "row width"]:
    """Activations of a site as rows: one for each place of a map, or for each token."""
    return rearrange(acts, "b c h w -> (b h w) c") if acts.dim() == 4 else acts.reshape(-1, acts.shape[-1])


def before_patches(tokens: int) -> int:
    """How many of the tokens of a picture come before the square of its patches: [CLS], and registers.

    >>> before_patches(197), before_patches(196)
    (1, 0)
    """
    return tokens - isqrt(tokens) ** 2


def shaped_like(
    rows: Float[Tensor, "row width"], acts: Float[Tensor, "batch *axes"]
) -> Float[Tensor, "batch *axes"]:
    """Rows back in the shape of the activations they were taken from."""
    if acts.dim() == 4:
        return rearrange(rows, "(b h w) c -> b c h w", b=len(acts), h=acts.shape[2])
    return rows.reshape(*acts.shape[:-1], rows.shape[-1])
