"""A transformer nobody has trained: what every analysis must find nothing in.

The family of Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (transformer-
circuits.pub/2021/framework), with the weights of its first step: normal, sd 1/√fan_in.
"""

from vesalius.architectures.toy import ToyTransformer
from vesalius.model import Model


def random_attn(
    *,
    n_layers: int = 2,
    d_model: int = 64,
    n_heads: int = 4,
    d_vocab: int = 50,
    n_ctx: int = 64,
    d_mlp: int = 0,
    norm: bool = False,
    positions: str = "shortformer",
    seed: int = 0,
) -> Model:
    """A transformer with random weights; attention only, without norms, unless asked otherwise.

    >>> random_attn(n_layers=1).n_layers
    1
    """
    module = ToyTransformer(
        n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_vocab=d_vocab, n_ctx=n_ctx,
        d_mlp=d_mlp, norm=norm, positions=positions, seed=seed,
    )  # fmt: skip
    return Model(module, bos=0, name=f"random-attn-{n_layers}l-seed-{seed}")
