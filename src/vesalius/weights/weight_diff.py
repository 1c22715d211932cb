"""An edited network as a diff: what to add to which weights of which parent, and the way back.

A diff knows the sha256 of the network it was made for and of the one it makes, and is refused by any other. Where an
edit is of low rank it is kept as factors, which are added one rank after another in plain IEEE steps, so that the
result is the same to the bit on every machine. Subtracting them again brings back nearly every weight exactly; the few
that rounding has lost are kept with their old values, so that the inverse is exact too.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.files import whole
from vesalius.model import Model

KEY = "vesalius_weight_diff"
Factors = tuple[Float[Tensor, "row rank"], Float[Tensor, "rank column"]]


@dataclass(frozen=True, eq=False)
class LowRank:
    """`left @ right` is added; a vector is a matrix of one column."""

    left: Float[Tensor, "row rank"]
    right: Float[Tensor, "rank column"]
    lost: Int[Tensor, " entry"]
    """Entries that subtraction does not bring back, in the order of memory."""
    old: Float[Tensor, " entry"]

    @classmethod
    def of(
        cls, weight: Tensor, left: Float[Tensor, "row rank"], right: Float[Tensor, "rank column"]
    ) -> "LowRank":
        """With what it takes to undo it at this weight."""
        none = torch.zeros(0, dtype=torch.long, device=weight.device)
        plain = cls(left.contiguous(), right.contiguous(), none, weight.new_zeros(0))
        back = plain.removed(plain.added(weight)).flatten()
        lost = (back != weight.flatten()).nonzero()[:, 0]
        return cls(plain.left, plain.right, lost, weight.flatten()[lost].clone())

    def added(self, weight: Tensor) -> Tensor:
        return self._moved(weight, 1)

    def removed(self, weight: Tensor) -> Tensor:
        back = self._moved(weight, -1)
        back.view(-1)[self.lost.to(back.device)] = self.old.to(back)
        return back

    def _moved(self, weight: Tensor, sign: int) -> Tensor:
        """In double precision, rank by rank, each product rounded before it is added: no fused steps."""
        total = torch.zeros(len(self.left), self.right.shape[1], dtype=torch.float64, device=weight.device)
        for column, row in zip(self.left.to(total).T, self.right.to(total)):
            total += column[:, None] * row
        return (weight.double() + sign * total.reshape(weight.shape)).to(weight.dtype).contiguous()


@dataclass(frozen=True, eq=False)
class Replaced:
    """Entries that change, with their values before and after; in the order of memory."""

    places: Int[Tensor, " entry"]
    old: Float[Tensor, " entry"]
    new: Float[Tensor, " entry"]

    @classmethod
    def of(cls, weight: Tensor, other: Tensor) -> "Replaced":
        places = (weight.flatten() != other.flatten()).nonzero()[:, 0]
        return cls(places, weight.flatten()[places].clone(), other.flatten()[places].clone())

    def added(self, weight: Tensor) -> Tensor:
        return self._put(weight, self.new)

    def removed(self, weight: Tensor) -> Tensor:
        return self._put(weight, self.old)

    def _put(self, weight: Tensor, values: Tensor) -> Tensor:
        changed = weight.clone().contiguous()
        changed.view(-1)[self.places.to(weight.device)] = values.to(changed)
        return changed


Change = LowRank | Replaced


@dataclass(frozen=True, eq=False)
class WeightDiff:
    """What makes one network of another, parameter by parameter.

    >>> from vesalius.testbed import random_attn
    >>> parent = random_attn()
    >>> diff = WeightDiff.of_factors(parent, {"unembed.weight": (torch.ones(50, 1), torch.ones(1, 64))})
    >>> edited = diff.apply(parent)
    >>> edited.hash == parent.hash, diff.invert(edited).hash == parent.hash
    (False, True)
    """

    parent: str
    """The network's name."""
    parent_hash: str
    child_hash: str
    changes: dict[str, Change]
    about: dict = field(default_factory=dict)
    """What the edit is, in JSON."""

    @classmethod
    def of_factors(
        cls, parent: Model, factors: Mapping[str, Factors], *, about: dict | None = None
    ) -> "WeightDiff":
        """A sum of outer products for each parameter named."""
        own = dict(parent.module.named_parameters())
        changes: dict[str, Change] = {
            name: LowRank.of(own[name].detach(), *both) for name, both in factors.items()
        }
        return cls._made(parent, changes, about)

    @classmethod
    def between(cls, parent: Model, child: Model, *, about: dict | None = None) -> "WeightDiff":
        """All entries in which two networks of one shape differ, whatever changed them.

        Raises VesaliusError if they are not of one shape.
        """
        own, others = dict(parent.module.named_parameters()), dict(child.module.named_parameters())
        if {name: weight.shape for name, weight in own.items()} != {n: w.shape for n, w in others.items()}:
            raise VesaliusError(
                f"{child.name} has not the parameters of {parent.name}; expected one edited from it"
            )
        differing = [name for name in own if not torch.equal(own[name], others[name])]
        changes: dict[str, Change] = {
            name: Replaced.of(own[name].detach(), others[name].detach()) for name in differing
        }
        return cls._made(parent, changes, about)

    @classmethod
    def _made(cls, parent: Model, changes: dict[str, Change], about: dict | None) -> "WeightDiff":
        child = _changed(parent, {name: change.added for name, change in changes.items()}, "")
        return cls(parent.name, parent.hash, child.hash, changes, about or {})

    @property
    def rank(self) -> int | None:
        """The largest of any parameter's change; None where entries were replaced."""
        ranks = [
            change.left.shape[1] if isinstance(change, LowRank) else None for change in self.changes.values()
        ]
        return None if None in ranks else max((rank for rank in ranks if rank), default=0)

    def apply(self, model: Model) -> Model:
        """The edited network; `model` stays as it is. Raises VesaliusError for another network than the parent."""
        _require(model, self.parent_hash, f"the diff was made for {self.parent}", "apply")
        edited = _changed(
            model, {name: change.added for name, change in self.changes.items()}, f"{model.name} (edited)"
        )
        if edited.hash != self.child_hash:
            raise VesaliusError(
                f"{model.name} with this diff has the weights {edited.hash[:12]}, not {self.child_hash[:12]}; "
                "the file is damaged"
            )
        return edited

    def invert(self, model: Model) -> Model:
        """The parent, to the bit. Raises VesaliusError for another network than the edited one."""
        _require(model, self.child_hash, f"the diff makes an edited {self.parent}", "invert")
        name = model.name.removesuffix(" (edited)")
        return _changed(model, {name: change.removed for name, change in self.changes.items()}, name)

    def save(self, file: str | Path) -> Path:
        """Write one .safetensors file whose header says what it is, under a temporary name until it is whole."""
        file = Path(file).with_suffix(".safetensors")
        tensors, kinds = {}, {}
        for name, change in self.changes.items():
            kinds[name] = type(change).__name__
            for part, tensor in vars(change).items():
                tensors[f"{name}/{part}"] = tensor.detach().cpu().clone().contiguous()
        manifest = {
            "parent": self.parent,
            "parent_hash": self.parent_hash,
            "child_hash": self.child_hash,
            "changes": kinds,
            "about": self.about,
        }
        with whole(file) as fresh:
            save_file(tensors, fresh, metadata={KEY: json.dumps(manifest)})
        return file

    @classmethod
    def load(cls, file: str | Path) -> "WeightDiff":
        """Read what `save` wrote. Raises VesaliusError if the file is damaged or no diff."""
        try:
            with safe_open(file, "pt") as opened:
                manifest = (opened.metadata() or {}).get(KEY)
                tensors = {part: opened.get_tensor(part) for part in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise VesaliusError(f"{file} cannot be read as a diff of weights: {error}") from error
        if manifest is None:
            raise VesaliusError(f"{file} is a file of tensors, but not a diff of weights that Vesalius saved")
        known = json.loads(manifest)
        kinds = {kind.__name__: kind for kind in (LowRank, Replaced)}
        changes = {
            name: kinds[kind](
                **{
                    part.removeprefix(f"{name}/"): tensor
                    for part, tensor in tensors.items()
                    if part.rpartition("/")[0] == name
                }
            )
            for name, kind in known.pop("changes").items()
        }
        return cls(**known, changes=changes)


def _require(model: Model, wanted: str, what: str, verb: str) -> None:
    if model.hash != wanted:
        raise VesaliusError(
            f"{what} with the weights {wanted[:12]}; {model.name} has {model.hash[:12]}, so there is nothing to {verb}"
        )


def _changed(model: Model, functions: Mapping, name: str) -> Model:
    """A copy of a network with some parameters recomputed."""
    module = copy.deepcopy(model.module)
    own = dict(module.named_parameters())
    with torch.no_grad():
        for parameter, function in functions.items():
            own[parameter].copy_(function(own[parameter].detach()))
    return Model(
        module,
        None if model.prepare == model._prepare else model.prepare,
        tokenizer=model.tokenizer,
        bos=model.bos,
        preprocessing=model.preprocessing,
        labels=model.labels,
        architecture=model.architecture,
        name=name,
    )
