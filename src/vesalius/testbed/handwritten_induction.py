"""Two layers of attention that copy what followed last time, every weight set by hand.

The circuit of Olsson et al. 2022, "In-context Learning and Induction Heads" (arXiv 2209.11895), in its purest
form. The residual stream holds four blocks of one-hots: the token here, the token before it, the token
predicted, the place.

1. Head 0.0 looks one place back (its query asks for place - 1) and writes the token it finds there into
   `before`.
2. Head 1.0 asks, with the token here, for a key whose `before` is that token, and writes the token there into
   `predicted`: it has found what followed the last occurrence. This is K-composition, and nothing else is.
3. The unembedding reads `predicted`.

Token 0 begins a text, is never written and never matched, so the composition of 0.0 into the keys of 1.0 is
1/√(d_vocab - 1), into its queries and values 0. Heads 0.1 and 1.1 are all zeros: heads that do nothing.
"""

import torch

from vesalius.architectures.toy import ToyTransformer
from vesalius.model import Model

SHARPNESS = 60.0
"""Attention score of a match, where everything else scores 0."""
LOUDNESS = 20.0
"""Logit of the predicted token, where every other token has 0."""


def handwritten_induction(*, d_vocab: int = 41, n_ctx: int = 49) -> Model:
    """An induction circuit that is right on every repeated token, in a vocabulary of `d_vocab` with 0 as BOS.

    >>> model = handwritten_induction()
    >>> model.logits(torch.tensor([[0, 7, 8, 9, 7]]))[0, -1].argmax().item()
    8
    """
    d_head = -(-(3 * d_vocab + n_ctx) // 2)
    module = ToyTransformer(
        n_layers=2, d_model=2 * d_head, n_heads=2, d_vocab=d_vocab, n_ctx=n_ctx, positions="residual"
    )
    here, before, predicted = (torch.arange(d_vocab) + block * d_vocab for block in range(3))
    place = torch.arange(n_ctx) + 3 * d_vocab
    token, where = torch.arange(d_vocab), torch.arange(n_ctx)
    sharp = (SHARPNESS * d_head**0.5) ** 0.5
    previous, induction = (block.attn for block in module.blocks)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.embed.weight[token, here] = 1.0
        module.positions[where, place] = 1.0
        previous.q_proj.weight[where[:-1], place[1:]] = sharp  # weights of torch.nn.Linear: [out, in]
        previous.k_proj.weight[where, place] = sharp
        previous.v_proj.weight[token[1:], here[1:]] = 1.0
        previous.o_proj.weight[before[1:], token[1:]] = 1.0
        induction.q_proj.weight[token[1:], here[1:]] = sharp
        induction.k_proj.weight[token[1:], before[1:]] = sharp
        induction.v_proj.weight[token[1:], here[1:]] = 1.0
        induction.o_proj.weight[predicted[1:], token[1:]] = LOUDNESS
        module.unembed.weight[token, predicted] = 1.0
    return Model(module, bos=0, name="handwritten-induction")
