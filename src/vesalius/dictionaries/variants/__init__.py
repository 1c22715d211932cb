"""The kinds of sparse dictionary: each is an activation function and a loss, and what its authors keep fixed beside.

In the losses, x is what is reconstructed, in rows of n units; f are the codes; d_i what latent i writes. Unless it
says otherwise, decoder vectors are kept at length 1 and activations are scaled so that their mean length is √n.
"""

from vesalius.dictionaries.variants.jump_relu import jump_relu
from vesalius.dictionaries.variants.largest import batch_topk, matryoshka, topk
from vesalius.dictionaries.variants.penalised import april, gated, relu_l1
from vesalius.dictionaries.variants.variant import VARIANTS, Pass, Variant, variant_of

__all__ = [
    "VARIANTS",
    "Pass",
    "Variant",
    "april",
    "batch_topk",
    "gated",
    "jump_relu",
    "matryoshka",
    "relu_l1",
    "topk",
    "variant_of",
]
