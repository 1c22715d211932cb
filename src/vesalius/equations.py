"""The equations an architecture's table must satisfy, checked on the network itself.

A table of addresses and slices is right exactly when the forward pass can be written with it. On a few random
inputs, everything is recorded once and compared with what the weights say (row vectors; the family's norms):

    embed           embed = W_E[ids] + W_pos
    residual        resid_post = resid_pre + attn_out + mlp_out, and resid_mid halfway where there is one
    pattern rows    every row of a pattern sums to 1, and looks at nothing later if the family is causal
    scores          pattern = softmax(q kᵀ / √d_head), q = norm1(x) W_Q + b_Q, k likewise; with rotary
                    positions q·k at one position, which turning both leaves alone, and softmax of the turned
    values          v = norm1(x) W_V + b_V
    mixing          z = pattern · v
    attention out   attn_out = Σ_h z_h W_O^h + b_O
    neurons         neurons = act(norm2(x) W_in + b_in), or act(x W_gate + b_gate) · (x W_in + b_in)
    mlp out         mlp_out = neurons W_out + b_out
    logits          logits = norm_final(resid_post of the last layer) W_U + b_U

The equations of a convolutional network are in `convolution_equations`.

The error of an equation is the largest absolute difference divided by the largest absolute value: 0 is exact.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from vesalius.access import record
from vesalius.architectures import Architecture, Shape
from vesalius.convolution_equations import Opened, convolution_errors
from vesalius.errors import VesaliusError

TOKENS_CHECKED = 4096
"""How many logits are compared, evenly spaced over the vocabulary."""

Norm = Callable[[Tensor, str], Tensor]


@dataclass(frozen=True)
class Network:
    """A module with the table that is said to describe it."""

    module: Any
    family: Architecture
    name: str
    shape: Shape

    def has(self, role: str) -> bool:
        return role in self.family.weights

    def raw(self, role: str, layer: int = 0) -> Tensor:
        return self.family.weights[role](self.module, layer).detach()

    def weight(self, role: str, layer: int = 0) -> Tensor:
        return self.raw(role, layer).float()


def check_equations(model: Opened, *, positions: int = 6, seed: int = 0) -> dict[str, float]:
    """The largest relative error of every equation, over the first, second, middle and last layer.

    >>> from vesalius.testbed import random_attn
    >>> errors = check_equations(random_attn(seed=0))
    >>> max(errors.values()) < 1e-5
    True

    Raises VesaliusError naming the first equation that is off by more than rounding (1e-4 in float32), and
    the layer. A model without a known architecture has no equations: the result is empty.
    """
    if model.architecture is None:
        return {}
    if "maps" in model.architecture.sites:
        return convolution_errors(model)
    shape = model.architecture.shape(model.module)
    network = Network(model.module, model.architecture, model.name, shape)
    inputs = example(model, positions=positions, seed=seed)
    depth = shape.n_layers
    layers = sorted({0, 1, depth // 2, depth - 1} & set(range(depth)))
    wanted = [
        f"{role}@{layer}"
        for role in model.architecture.sites
        for layer in layers
        if role not in ("embed", "logits")
    ]
    with torch.no_grad(), record(model, [*wanted, "embed", "logits"]) as acts:
        model.module(inputs)
        values = {site: value.float() for site, value in acts.items()}
        found: dict[str, float] = {}
        for layer in layers:
            here = {site.partition("@")[0]: values[site] for site in values if site.endswith(f"@{layer}")}
            for name, error in layer_errors(network, here, layer).items():
                found[name] = max(found.get(name, 0.0), demand(network, name, error, layer))
        stream = values[f"resid_post@{layers[-1]}"] if layers else values["embed"]
        for name, error in end_errors(network, inputs, stream, values).items():
            found[name] = demand(network, name, error, None)
    return found


def example(model: Opened, *, positions: int, seed: int) -> Tensor:
    """A batch of two random inputs: token ids, or an image."""
    family, module = model.architecture, cast(Any, model.module)
    generator = torch.Generator().manual_seed(seed)
    assert family is not None
    weights, shape = next(module.parameters()), family.shape(module)
    if family.inputs == "tokens":
        ids = torch.randint(0, shape.d_vocab, (2, min(positions, shape.n_ctx)), generator=generator)
        return ids.to(weights.device)
    size = (2, module.config.num_channels, module.config.image_size, module.config.image_size)
    return torch.randn(size, generator=generator).to(weights)


def demand(network: Network, equation: str, error: float, layer: int | None) -> float:
    """`error`, if it is small enough for the precision the network computes in."""
    allowed = max(1e-4, 8 * torch.finfo(next(network.module.parameters()).dtype).eps)
    if not error <= allowed:
        where = "" if layer is None else f" at layer {layer}"
        raise VesaliusError(
            f"{network.name} breaks the equation '{equation}' of the architecture {network.family.name}"
            f"{where}: relative error {error:.2g}, expected at most {allowed:.2g}"
        )
    return error


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    return float((got.reshape(expected.shape) - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def layer_errors(network: Network, here: dict[str, Tensor], layer: int) -> dict[str, float]:
    """Errors of the equations of one layer; `here` holds the layer's recorded roles."""
    family = network.family
    norm = norm_of(network, layer)

    def weight(role: str) -> Tensor:
        return network.weight(role, layer)

    x, z, pattern = here["resid_pre"], here["z"], here["pattern"]
    batch_pos = x.shape[:-1]
    added = here["attn_out"].reshape(*batch_pos, -1)
    mlp_out = here["mlp_out"].reshape(*batch_pos, -1) if "mlp_out" in here else torch.zeros_like(x)
    read = x if family.residual == "post_norm" else norm(x, "norm1")

    errors = {"pattern rows": relative_error(pattern.sum(-1), torch.ones_like(pattern[..., 0]))}
    if family.causal:
        errors["pattern rows"] += float(pattern.triu(1).abs().max())
    if family.residual == "post_norm":
        middle = norm(x + added, "norm1")
        errors["residual"] = relative_error(here["resid_post"], norm(middle + mlp_out, "norm2"))
    else:
        middle = x + added
        errors["residual"] = relative_error(here["resid_post"], middle + mlp_out)
    if "resid_mid" in here:
        errors["residual"] = max(errors["residual"], relative_error(here["resid_mid"], middle))

    errors |= score_errors(network, here, read, layer)
    v = einsum(read, weight("W_V"), "batch pos d, head d e -> batch head pos e") + weight("b_V")[:, None]
    errors["values"] = relative_error(here["v"], for_each_query_head(v, network))
    errors["mixing"] = relative_error(z, pattern @ here["v"])
    out = einsum(z, weight("W_O"), "batch head pos e, head e d -> batch pos d") + weight("b_O")
    errors["attention out"] = relative_error(added, norm(out, "norm1_post"))

    if "neurons" in here:
        neurons = here["neurons"].reshape(*batch_pos, -1)
        source = {"parallel": x, "sequential": middle, "post_norm": middle}[family.residual]
        source = source if family.residual == "post_norm" else norm(source, "norm2")
        act = activation_of(network, layer)
        up = source @ weight("W_in") + weight("b_in")
        gated = act(source @ weight("W_gate") + weight("b_gate")) * up if network.has("W_gate") else act(up)
        errors["neurons"] = relative_error(neurons, gated)
        out = neurons @ weight("W_out") + weight("b_out")
        errors["mlp out"] = relative_error(mlp_out, norm(out, "norm2_post"))
    return errors


def score_errors(network: Network, here: dict[str, Tensor], read: Tensor, layer: int) -> dict[str, float]:
    """Queries and keys from the weights against the pattern, and against the turned ones if there are any."""
    family, norm = network.family, norm_of(network, layer)
    placed = read
    if family.positions == "shortformer":
        placed = read + network.weight("W_pos")[: read.shape[1]]

    def heads(name: str) -> Float[Tensor, "batch head pos d_head"]:
        matrix, bias = network.weight(f"W_{name}", layer), network.weight(f"b_{name}", layer)
        projected = einsum(placed, matrix, "batch pos d, head d e -> batch pos head e") + bias
        normed = norm(projected, f"norm_{name.lower()}")
        return for_each_query_head(rearrange(normed, "batch pos head e -> batch head pos e"), network)

    q, k = heads("Q"), heads("K")
    if family.positions != "rotary":
        scale = (q * here["q"]).sum() / here["q"].square().sum()  # some families scale q beforehand
        projected = max(relative_error(scale * here["q"], q), relative_error(here["k"], k))
        scores = q @ k.mT * network.shape.d_head**-0.5
        return {"scores": max(projected, pattern_error(network, here["pattern"], scores))}
    content, turned = (q * k).sum(-1), (here["q"] * here["k"]).sum(-1)
    scale = (content * turned).sum() / turned.square().sum()  # some families scale q before they turn it
    scores = scale * here["q"] @ here["k"].mT * network.shape.d_head**-0.5
    return {
        "scores": max(
            relative_error(scale * turned, content), pattern_error(network, here["pattern"], scores)
        ),
    }


def pattern_error(network: Network, pattern: Tensor, scores: Tensor) -> float:
    """Pattern against softmax of scores; what the network masks (exact zeros) is masked here too."""
    if network.has("attn_softcap"):
        cap = network.weight("attn_softcap")
        scores = cap * torch.tanh(scores / cap)
    return relative_error(scores.masked_fill(pattern == 0, -torch.inf).softmax(-1), pattern)


def end_errors(network: Network, inputs: Tensor, x: Tensor, values: dict[str, Tensor]) -> dict[str, float]:
    """Errors of the equations at both ends of the network; `x` is the stream after the last layer."""
    norm = norm_of(network, 0)
    if network.has("W_head"):
        x = activation_of(network, 0)(x @ network.weight("W_head") + network.weight("b_head"))
    some = slice(None, None, math.ceil(network.shape.d_vocab / TOKENS_CHECKED))
    logits = norm(x, "norm_final") @ network.raw("W_U")[:, some].float() + network.weight("b_U")[some]
    if values["logits"].dim() == 2:  # a classifier reads the first position
        logits = logits[:, 0]
    return {
        "embed": relative_error(values["embed"], norm(embedding(network, inputs), "norm_embed")),
        "logits": relative_error(values["logits"][..., some], logits),
    }


def embedding(network: Network, inputs: Tensor) -> Float[Tensor, "batch pos d_model"]:
    """What enters the first block, before any norm, from W_E and W_pos."""
    table = network.raw("W_E")
    if network.family.inputs == "tokens":
        embedded = table[inputs].float()
    else:
        size = network.module.config.patch_size
        patches = rearrange(
            inputs.float(), "b channel (row y) (column x) -> b (row column) (channel y x)", y=size, x=size
        )
        first = network.weight("W_cls").expand(len(inputs), 1, -1)
        embedded = torch.cat([first, patches @ table.float() + network.weight("b_E")], 1)
    if network.family.positions == "residual":
        embedded = embedded + network.weight("W_pos")[: embedded.shape[1]]
    return embedded


def norm_of(network: Network, layer: int) -> Norm:
    """The family's norm by the role of its gain; a role the family lacks leaves its input alone."""

    def norm(x: Tensor, role: str) -> Tensor:
        if not network.has(role):
            return x
        weight = network.weight(role, layer)
        axes = tuple(range(-weight.dim(), 0))  # OLMo 2 normalises queries over all heads together
        if network.family.norm == "layer":
            x = x - x.mean(axes, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(axes, keepdim=True) + network.weight("eps").item()) * weight
        return x + network.weight(f"{role}_bias", layer) if network.has(f"{role}_bias") else x

    return norm


def activation_of(network: Network, layer: int) -> Callable[[Tensor], Tensor]:
    """The MLP's own nonlinearity."""
    return network.module.get_submodule(network.family.activation.format(layer))


def for_each_query_head(
    kv: Float[Tensor, "batch kv pos e"], network: Network
) -> Float[Tensor, "batch head pos e"]:
    """Grouped keys or values, repeated for every query head that shares them."""
    return kv.repeat_interleave(network.shape.n_heads // kv.shape[1], dim=1)
