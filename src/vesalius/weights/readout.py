"""What a vector written to the residual stream adds to the logits, the final norm's scale held as it was.

A norm before the unembedding divides by a number that depends on the whole stream. Held at the value it had
in the forward pass, everything after the last block is linear, and a logit is a sum over all that was ever
written (direct logit attribution: Elhage et al. 2021, transformer-circuits.pub/2021/framework). The scale is
measured between what enters the final norm and what leaves it, so that the norm's epsilon is in it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.site import Site


def readout_sites(model: Model) -> tuple[str, str]:
    """The addresses of the last residual stream and of what the unembedding reads."""
    if model.n_layers == 0:
        raise VesaliusError(f"{model.name} has no layers, so nothing is written after the embedding")
    unembed = Site.parse(model.architecture.sites["logits"])
    return f"resid_post@{model.n_layers - 1}", f"{unembed.path}:in"


def norm_scale(
    model: Model, before: Float[Tensor, "*batch d_model"], after: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch"]:
    """The factor by which the final norm multiplied each position, beside its gain; 1 without a norm.

    Raises VesaliusError if what the unembedding read is not a scaled copy of the last residual stream.
    """
    centred = before - before.mean(-1, keepdim=True) if _centres(model) else before
    read = centred * model.weight("norm_final").to(before) if model.has("norm_final") else centred
    written = after - model.weight("norm_final_bias").to(after) if model.has("norm_final_bias") else after
    scale = (written * read).sum(-1) / read.square().sum(-1)
    missed = ((written - scale[..., None] * read).norm() / written.norm()).item()
    if missed > 1e-2:
        raise VesaliusError(
            f"{model.name} does more than scale the residual stream before its unembedding: {missed:.0%} of "
            "what that reads is something else, and direct effects on logits need a final norm alone"
        )
    return scale


def logit_columns(model: Model, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
    """The columns of W_U for some tokens, in float32 at least."""
    columns = torch.movedim(model.weight("W_U")[:, tokens.to(model.device)], 0, -1)
    return columns if columns.dtype is torch.float64 else columns.float()


def before_norm(model: Model, columns: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """Directions that the unembedding reads, as directions of the residual stream: gain and centring folded
    in.

    What a write adds to a logit is its product with this direction, times `norm_scale`.
    """
    columns = columns * model.weight("norm_final").to(columns) if model.has("norm_final") else columns
    return columns - columns.mean(-1, keepdim=True) if _centres(model) else columns


def _centres(model: Model) -> bool:
    return model.architecture.norm == "layer" and model.has("norm_final")


def unembedded(model: Model, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
    """Logits that the final norm and the unembedding make of any residual stream (before a cap, if there is
    one)."""
    stream = stream if stream.dtype is torch.float64 else stream.float()
    if _centres(model):
        stream = stream - stream.mean(-1, keepdim=True)
    if model.has("norm_final"):
        stream = stream * (stream.square().mean(-1, keepdim=True) + model.weight("eps").to(stream)).rsqrt()
        stream = stream * model.weight("norm_final").to(stream)
    if model.has("norm_final_bias"):
        stream = stream + model.weight("norm_final_bias").to(stream)
    logits = stream @ model.weight("W_U").to(stream)
    return logits + model.weight("b_U").to(logits) if model.has("b_U") else logits
