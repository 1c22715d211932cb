"""Edits of weights: a direction that nothing writes any more, and an association that one MLP is given.

- `without_direction`: every matrix and bias that writes to the residual stream loses its component along a direction,
  so that no input can bring it back (Arditi et al. 2024, arXiv 2406.11717);
- `with_association`: the rank-one edit of ROME (Meng et al. 2022, arXiv 2202.05262). An MLP's output matrix, seen as a
  memory from keys (its neurons) to values, is changed to give a new value at one key, and as little as possible at
  keys as they usually are: W + (C⁻¹k)(v − kW)ᵀ / (kᵀC⁻¹k), where C is the second moment of keys.

Both are `WeightDiff`s of rank one.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.access import intervene, record
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.weights.weight_diff import Factors, WeightDiff

WRITERS = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")
CURVATURE = 1e-2
"""Added to the second moment of keys, in units of their mean square."""


def without_direction(model: Model, direction: Float[Tensor, " d_model"], *, label: str = "") -> WeightDiff:
    """The diff after which nothing is written along a direction of the residual stream.

    Raises VesaliusError if the direction has another width or no length, or a writer cannot be reached.

    >>> from vesalius.testbed import random_attn
    >>> model = random_attn()
    >>> edited = without_direction(model, torch.eye(64)[3]).apply(model)
    >>> with record(edited, "resid_post@1") as acts:
    ...     _ = edited(torch.tensor([[1, 2, 3]]))
    >>> bool(acts["resid_post@1"][..., 3].abs().max() < 1e-6)
    True
    """
    if direction.shape != (model.d_model,) or not direction.norm() > 0:
        raise VesaliusError(
            f"a direction of shape {list(direction.shape)} and length {direction.norm():.3g} was given; {model.name} "
            f"writes {model.d_model} units, and the direction must not be 0"
        )
    unit = torch.nn.functional.normalize(direction.to(model.device).double(), dim=0)
    factors: dict[str, Factors] = {}
    for name, weight, last in _writers(model):
        if name in factors:  # tied to one that has been seen
            continue
        rows = weight.double()[:, None] if weight.dim() == 1 else weight.double()
        if last and weight.dim() == 2:
            factors[name] = (-(rows @ unit)[:, None], unit[None])
        else:
            factors[name] = (-unit[:, None], (unit @ rows)[None])
    about = {"edit": "without_direction", "direction": label, "tied": _tied(model)}
    return WeightDiff.of_factors(model, factors, about=about)


def with_association(
    model: Model,
    layer: int,
    *,
    key: Float[Tensor, " d_mlp"],
    value: Float[Tensor, " d_model"],
    second_moment: Float[Tensor, "d_mlp d_mlp"],
    label: str = "",
) -> WeightDiff:
    """The diff after which the MLP of a layer answers `key` with `value`, bias included."""
    weight = model.weight("W_out", layer).double()
    name, last = _parameter(model, "W_out", layer)
    moment = second_moment.to(weight)
    ridge = CURVATURE * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
    towards = torch.linalg.solve(moment + ridge, key.to(weight))
    missing = value.to(weight) - key.to(weight) @ weight - model.weight("b_out", layer).double()
    column, row = towards / (key.to(weight) @ towards), missing
    factors = (column[:, None], row[None]) if last else (row[:, None], column[None])
    return WeightDiff.of_factors(
        model, {name: factors}, about={"edit": "with_association", "layer": layer, "fact": label}
    )


def key_of(
    model: Model, layer: int, rows: Sequence[Int[Tensor, " _"]], places: Sequence[int]
) -> Float[Tensor, " d_mlp"]:
    """The mean of an MLP's neurons at one place of each row."""
    keys = []
    for row, place in zip(rows, places, strict=True):
        with torch.no_grad(), record(model, f"neurons@{layer}", stop=True) as acts:
            model(row[None])
        keys.append(acts[f"neurons@{layer}"][0, place])
    return torch.stack(keys).mean(0)


def second_moment(model: Model, layer: int, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "d_mlp d_mlp"]:
    """Of an MLP's neurons over all tokens of a text but the first, which is BOS."""
    total = torch.zeros(model.d_mlp, model.d_mlp, dtype=torch.float64, device=model.device)
    count = 0
    for part in ids.split(8):
        with torch.no_grad(), record(model, f"neurons@{layer}", stop=True) as acts:
            model(part)
        keys = acts[f"neurons@{layer}"][:, int(model.bos is not None) :].flatten(0, 1).double()
        total += keys.T @ keys
        count += len(keys)
    return total / count


def value_for(
    model: Model,
    layer: int,
    *,
    rows: Sequence[Int[Tensor, " _"]],
    places: Sequence[int],
    target: int,
    steps: int = 25,
    learning_rate: float = 0.5,
    weight_decay: float = 1e-2,
) -> Float[Tensor, " d_model"]:
    """The output of an MLP at one place of each row that makes the `target` likely at the row's end, by Adam.

    The rows share one value; its distance from the mean of what the MLP gives now is penalised, in units of that.
    """
    site = f"mlp_out@{layer}"
    own = []
    for row, place in zip(rows, places, strict=True):
        with torch.no_grad(), record(model, site, stop=True) as acts:
            model(row[None])
        own.append(acts[site][0, place])
    start = torch.stack(own).mean(0)
    moved = torch.zeros_like(start).requires_grad_()
    size = start.norm().clamp(min=1e-6)
    optimiser = torch.optim.Adam([moved], lr=learning_rate * float(size) / len(start) ** 0.5)
    with torch.enable_grad():
        for _ in range(steps):
            loss = weight_decay * (moved.norm() / size).square()
            for row, place in zip(rows, places, strict=True):
                with intervene(model, {site: _placed(place, start + moved)}):
                    loss = loss - model.logits(row[None])[0, -1].log_softmax(-1)[target] / len(rows)
            (moved.grad,) = torch.autograd.grad(loss, [moved])
            optimiser.step()
    return (start + moved).detach()


def _placed(place: int, value: Tensor):
    def edit(acts: Tensor) -> Tensor:
        acts = acts.clone()
        acts[:, place] = value.to(acts)
        return acts

    return edit


def _writers(model: Model) -> Iterator[tuple[str, Tensor, bool]]:
    """Parameters that write to the residual stream, and whether the stream is their last axis."""
    roles = [role for role in WRITERS if model.has(role)]
    if not roles or not model.has("W_E"):
        raise VesaliusError(f"{model.name} has no known writers of a residual stream; expected a transformer")
    if model.architecture.positions != "residual" and "W_pos" in roles:
        roles.remove("W_pos")
    own = dict(model.module.named_parameters())
    for role in roles:
        for layer in range(1 if role in ("W_E", "W_pos") else model.n_layers):
            weight = model.weight(role, layer)
            if weight.dim() == 1 and not weight.any():  # a bias that is not there
                continue
            name, last = _parameter(model, role, layer)
            yield name, own[name].detach(), last


def _parameter(model: Model, role: str, layer: int) -> tuple[str, bool]:
    """The parameter that a weight is a view of, and whether the last axis of the one is the last of the other.

    Raises VesaliusError if the weight is computed from its parameter, or shares it with other weights.
    """
    view = model.weight(role, layer)
    for name, parameter in model.module.named_parameters():
        same = parameter.untyped_storage().data_ptr() == view.untyped_storage().data_ptr()
        if same and parameter.numel() == view.numel() and parameter.data_ptr() == view.data_ptr():
            return name, view.stride(-1) == parameter.stride(-1) and parameter.shape[-1] == view.shape[-1]
    raise VesaliusError(
        f"{role} of layer {layer} of {model.name} is not stored as it is used; it cannot be edited"
    )


def _tied(model: Model) -> bool:
    """Whether tokens are read from and written to the stream with one matrix."""
    weights = (model.weight(role).untyped_storage().data_ptr() for role in ("W_E", "W_U") if model.has(role))
    return len(set(weights)) == 1
