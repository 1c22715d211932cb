"""What directions written at a site add to the logits directly, token by token, with the final norm's scale left out.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features): with d a latent's
direction among the neurons,

    v = d W_down π Γ W_U

where π takes the mean away if the final norm does and Γ is that norm's gain. The norm also divides by a number that
the whole residual stream decides; held as it was in a forward pass, it multiplies all of v alike. Adding one number to
every logit changes no probability, so v is shifted to a median of 0. Only the direct path counts: what later layers
make of the direction is not in it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.site import Site
from vesalius.weights.readout import before_norm

WRITTEN = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@torch.no_grad()
def logit_weights(
    model: Model, site: str, directions: Float[Tensor, "latent width"]
) -> Float[Tensor, "latent d_vocab"]:
    """Logits per unit of each direction at `site`, 0 in the median of all tokens.

    Raises VesaliusError where the way from the site to the logits is not known.

    >>> from vesalius.testbed import random_attn
    >>> logit_weights(random_attn(d_vocab=9), "resid_post@1", torch.eye(64)[:3]).shape
    torch.Size([3, 9])
    """
    W_U = model.weight("W_U")
    columns = before_norm(model, W_U.mT.to(torch.promote_types(W_U.dtype, torch.float32))).mT
    added = written(model, site, directions.to(columns)) @ columns
    return added - added.median(-1, keepdim=True).values


def written(
    model: Model, site: str, directions: Float[Tensor, "latent width"]
) -> Float[Tensor, "latent d_model"]:
    """Directions of a site as directions of the residual stream that it writes to."""
    address = Site.parse(site)
    layers = address.layer_numbers(model.n_layers) if address.layers else []
    if len(layers) != 1 or address.role not in (*WRITTEN, "neurons", "z"):
        raise VesaliusError(
            f"the way from '{site}' to the logits is not known; expected one of "
            f"{', '.join(f'{role}@LAYER' for role in (*WRITTEN, 'neurons', 'z'))}"
        )
    layer = layers[0]
    if address.role == "neurons":
        directions = _through(directions, model.weight("W_out", layer), site)
    if address.role == "z":
        directions = _through(directions, model.weight("W_O", layer).flatten(0, 1), site)
    after = "norm1_post" if address.role in ("z", "attn_out") else "norm2_post"
    if not address.role.startswith("resid") and model.has(after):
        directions = directions * model.weight(after, layer).to(directions)
    return directions


def _through(directions: Tensor, weight: Float[Tensor, "width d_model"], site: str) -> Tensor:
    if directions.shape[-1] != len(weight):
        raise VesaliusError(
            f"directions have {directions.shape[-1]} components; '{site}' has {len(weight)} units"
        )
    return directions @ weight.to(directions)
