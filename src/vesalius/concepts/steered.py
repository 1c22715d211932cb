"""Steering: what is done to the residual stream along a direction, where, and with which strength.

The operators of Zou et al. 2023 (Representation Engineering, arXiv 2310.01405), h the activation and v the direction:
linear h + αv; piecewise h + sign(h·v) αv, which sharpens what is there and never turns it round; projection
h - α (h·v) v/|v|², which at 1 leaves nothing along v; and clamp, which sets the component along v to α|v|.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vesalius.access import Edit
from vesalius.dictionaries.control_vector import ControlVector
from vesalius.errors import VesaliusError, nearest
from vesalius.model import Model

Operator = Literal["linear", "piecewise", "projection", "clamp"]
Direction = Float[Tensor, "*places width"]


def linear(vector: Direction, strength: float) -> Edit:
    """h + αv."""
    return lambda h: h + strength * vector.to(h)


def piecewise(vector: Direction, strength: float) -> Edit:
    """h + sign(h·v) αv. A negative strength shrinks h·v at most to 0, so that its sign is never turned.

    >>> piecewise(torch.tensor([1.0, 0.0]), -5.0)(torch.tensor([[2.0, 3.0]])).tolist()
    [[0.0, 3.0]]
    """

    def edit(h: Tensor) -> Tensor:
        v = vector.to(h)
        along = (h * v).sum(-1, keepdim=True)
        size = v.square().sum(-1, keepdim=True).clamp(min=torch.finfo(h.dtype).tiny)
        moved = along.sign() * (along.abs() + strength * size).clamp(min=0)
        return h + (moved - along) / size * v

    return edit


def projection(vector: Direction, strength: float = 1.0) -> Edit:
    """h - α (h·v) v/|v|²: without its component along v at 1, mirrored at 2.

    >>> projection(torch.tensor([0.0, 2.0]))(torch.tensor([[3.0, 4.0]])).tolist()
    [[3.0, 0.0]]
    """

    def edit(h: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(vector.to(h), dim=-1)
        left = h - strength * (h * unit).sum(-1, keepdim=True) * unit
        # a second time, for what rounding left of a long h
        return left - (left * unit).sum(-1, keepdim=True) * unit if strength == 1 else left

    return edit


def clamp(vector: Direction, strength: float) -> Edit:
    """The component along v is set to α|v|, whatever it was."""

    def edit(h: Tensor) -> Tensor:
        v = vector.to(h)
        unit = torch.nn.functional.normalize(v, dim=-1)
        wanted = strength * v.norm(dim=-1, keepdim=True)
        return h + (wanted - (h * unit).sum(-1, keepdim=True)) * unit

    return edit


OPERATORS: dict[str, Callable[[Direction, float], Edit]] = {
    operator.__name__: operator for operator in (linear, piecewise, projection, clamp)
}


def keep_norm(edit: Edit) -> Edit:
    """The edit, its result scaled back to the length that the activation had at every position."""

    def kept(h: Tensor) -> Tensor:
        new = edit(h)
        length = new.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(h.dtype).tiny)
        return new * (h.norm(dim=-1, keepdim=True) / length)

    return kept


def on_tokens(mask: Bool[Tensor, "batch pos"], edit: Edit) -> Edit:
    """The edit at the tokens of a mask alone, so that pads and what is not to be steered stay as they are."""
    return lambda h: torch.where(mask.to(h.device)[..., None], edit(h), h)


def token_mask(
    lengths: Sequence[int], positions: str | Sequence[int], *, size: int | None = None
) -> Bool[Tensor, "batch pos"]:
    """Where in rows of these lengths, padded on the right, to steer: `all`, `start`, `end` or positions by number.

    Raises VesaliusError for another word, or a position past the end of a row.
    """
    words = {"all": None, "start": [0], "end": [-1]}
    if isinstance(positions, str) and positions not in words:
        near = nearest(positions, words)
        raise VesaliusError(f"positions are '{positions}'; expected all, start, end or numbers{near}")
    chosen = words[positions] if isinstance(positions, str) else list(positions)
    mask = torch.zeros(len(lengths), size or max(lengths), dtype=torch.bool)
    for row, length in enumerate(lengths):
        for position in range(length) if chosen is None else chosen:
            if not -length <= position < length:
                raise VesaliusError(f"position {position} is past the end of a row of {length} tokens")
            mask[row, position % length] = True
    return mask


def steering_edits(
    model: Model,
    vector: ControlVector,
    *,
    strength: float = 1.0,
    operator: str = "linear",
    keep: bool = False,
    mask: Bool[Tensor, "batch pos"] | None = None,
) -> dict[str, Edit]:
    """The edits that steer by a control vector at all its layers, for `vs.intervene` or `generate`.

    `keep` preserves the norm of every activation; `mask` says which tokens are steered (None: all).
    Raises VesaliusError for another network's vector or an unknown operator.
    """
    if operator not in OPERATORS:
        near = nearest(operator, OPERATORS)
        raise VesaliusError(
            f"there is no operator '{operator}'; expected one of {', '.join(OPERATORS)}{near}"
        )
    edits = {}
    for layer, direction in vector.check(model).directions.items():
        edit = OPERATORS[operator](direction.to(device=model.device, dtype=model.dtype), strength)
        edit = keep_norm(edit) if keep else edit
        edits[f"resid_post@{layer}"] = edit if mask is None else on_tokens(mask, edit)
    return edits


def ablation_edits(model: Model, direction: Float[Tensor, " d_model"]) -> dict[str, Edit]:
    """Edits that keep a direction out of the residual stream: at every block's input and every write into it.

    Directional ablation of Arditi et al. 2024 (Refusal in Language Models Is Mediated by a Single Direction,
    arXiv 2406.11717).
    """
    assert model.architecture is not None
    roles = [role for role in ("resid_pre", "attn_out", "mlp_out") if role in model.architecture.sites]
    remove = projection(direction.to(device=model.device, dtype=model.dtype))
    return {f"{role}@*": remove for role in roles}


def orthogonalised(model: Model, direction: Float[Tensor, " d_model"]) -> Model:
    """The network with a direction taken out of all weights that write to the residual stream: W - W r rᵀ.

    It computes what `ablation_edits` make the network compute, without edits (Arditi et al. 2024). An unembedding
    that shares the embedding's weights gets its own copy. Raises VesaliusError for a family that normalises what its
    blocks write, where no weights can do the same.
    """
    if model.has("norm1_post") or model.architecture.residual == "post_norm":
        raise VesaliusError(
            f"{model.name} normalises what its blocks write, so weights cannot keep a direction out; "
            "use ablation_edits"
        )
    module = copy.deepcopy(model.module)
    _untie(module)
    edited = Model(
        module, None if model.prepare == model._prepare else model.prepare, tokenizer=model.tokenizer,
        bos=model.bos, architecture=model.architecture, name=f"{model.name} (orthogonalised)",
    )  # fmt: skip
    writes = [("W_E", 0), *([("W_pos", 0)] if model.architecture.positions == "residual" else [])]
    writes += [(role, layer) for role in ("W_O", "b_O", "W_out", "b_out") for layer in range(model.n_layers)]
    unit = torch.nn.functional.normalize(direction.double(), dim=0)
    owned = {p.untyped_storage().data_ptr() for p in module.parameters()}
    for role, layer in writes:
        if not edited.has(role):
            continue
        view = edited.weight(role, layer)
        if view.untyped_storage().data_ptr() in owned:
            along = view.double() @ unit.to(view.device)
            view -= (along[..., None] * unit.to(view.device)).to(view.dtype)
        elif float((view.double() @ unit.to(view.device)).abs().max()) > 0:
            raise VesaliusError(f"{role} of {model.name} is computed, not stored; use ablation_edits")
    return edited


def _untie(module: torch.nn.Module) -> None:
    """Give every parameter that stands in two places a copy of its own in the second."""
    seen = set()
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if id(parameter) in seen:
            owner, _, leaf = name.rpartition(".")
            own = torch.nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            setattr(module.get_submodule(owner), leaf, own)
        seen.add(id(parameter))
