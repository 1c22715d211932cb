"""A linear probe as a dictionary: a direction for every class of what it was taught to read."""

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.dictionaries import stored
from vesalius.dictionaries.feature import Feature
from vesalius.errors import VesaliusError, nearest


@dataclass(frozen=True, eq=False)
class ProbeDictionary:
    """The weights of one probe at one site; a class is named or numbered.

    The feature of a class is its weights less the mean of the others': how far it is ahead.

    >>> probe = ProbeDictionary("resid_post@3", torch.eye(3), torch.zeros(3), ("empty", "mine", "theirs"))
    >>> probe["mine"], probe["mine"].read.tolist()
    (Feature(mine), [-0.5, 1.0, -0.5])
    >>> probe.difference("mine", "theirs").read.tolist()
    [0.0, 1.0, -1.0]
    """

    site: str
    weight: Float[Tensor, "width class"]
    bias: Float[Tensor, " class"]
    classes: tuple[str, ...]
    name: str = ""
    """What is read; stands before the class in labels."""
    about: dict = field(default_factory=dict)
    """How it was fitted and how well it reads, in JSON."""

    def __post_init__(self) -> None:
        if not len(self.classes) == self.weight.shape[1] == len(self.bias) >= 2:
            raise VesaliusError(
                f"a probe of {len(self.classes)} named classes was given weights for {self.weight.shape[1]} and biases "
                f"for {len(self.bias)}; expected the same number of each, two or more"
            )

    @property
    def width(self) -> int:
        """Units of the site."""
        return len(self.weight)

    @property
    def latents(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return self.latents

    def __getitem__(self, name: str | int) -> Feature:
        """One class against the mean of the others."""
        index = self._index(name)
        return Feature(self.site, index, self.directions[:, index], label=self._label(self.classes[index]))

    def difference(self, name: str | int, other: str | int) -> Feature:
        """One class against one other."""
        a, b = self._index(name), self._index(other)
        label = self._label(f"{self.classes[a]} − {self.classes[b]}")
        return Feature(self.site, None, self.weight[:, a] - self.weight[:, b], label=label)

    @cached_property
    def directions(self) -> Float[Tensor, "width class"]:
        """The weights of every class less the mean of the others'."""
        others = (self.weight.sum(1, keepdim=True) - self.weight) / (self.latents - 1)
        return self.weight - others

    def encode(self, acts: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch class"]:
        """The value of every class's feature."""
        return self._fitting(acts) @ self.directions

    def decode(self, codes: Float[Tensor, "*batch class"]) -> Float[Tensor, "*batch width"]:
        """The smallest activation that has these values, or as nearly as can be."""
        return codes.to(self.weight) @ torch.linalg.pinv(self.directions)

    def logits(self, acts: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch class"]:
        """The probe's own scores, with its biases."""
        return self._fitting(acts) @ self.weight + self.bias

    def predictions(self, acts: Float[Tensor, "*batch width"]) -> list[str]:
        """The name of the likeliest class of every row, the axes before the last flattened."""
        return [self.classes[index] for index in self.logits(acts).argmax(-1).flatten().tolist()]

    @cached_property
    def hash(self) -> str:
        """sha256 over all numbers, the site and the classes."""
        said = json.dumps([self.site, self.classes])
        return stored.hash_of(said, [("", self.weight), ("", self.bias)])

    def save(self, file: str | Path) -> Path:
        """Write a .safetensors file, under a temporary name until it is whole."""
        described = asdict(self)
        tensors = {part: described.pop(part) for part in ("weight", "bias")}
        return stored.write(file, "probe", described, tensors)

    @classmethod
    def load(cls, file: str | Path) -> "ProbeDictionary":
        """Read what `save` wrote. Raises VesaliusError if the file is not a probe of ours."""
        fields, tensors = stored.read(file, "probe", called="a probe")
        return cls(**{**fields, "classes": tuple(fields["classes"])}, **tensors)

    def _index(self, name: str | int) -> int:
        if isinstance(name, int):
            if not 0 <= name < self.latents:
                raise VesaliusError(f"class {name} was asked for; this probe has 0 to {self.latents - 1}")
            return name
        if name not in self.classes:
            raise VesaliusError(
                f"this probe has no class '{name}'; it has {', '.join(self.classes)}{nearest(name, self.classes)}"
            )
        return self.classes.index(name)

    def _label(self, text: str) -> str:
        return f"{self.name}: {text}" if self.name else text

    def _fitting(self, acts: Tensor) -> Tensor:
        if acts.shape[-1] != self.width:
            raise VesaliusError(
                f"activations of {acts.shape[-1]} units were given to a probe of {self.width} at '{self.site}'"
            )
        return acts.to(self.weight)
