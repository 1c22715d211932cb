"""Zero layers trained on a bigram table that is known exactly.

A transformer without layers can hold nothing but bigrams (Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"): its logits are W_E W_U. Trained on the probabilities themselves, not on samples, it
ends at the table if `d_model` allows the rank, and at a best approximation of lower rank if it does not.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vesalius.architectures.toy import ToyTransformer
from vesalius.model import Model


def planted_bigram(*, d_model: int = 50, d_vocab: int = 50, steps: int = 1500, seed: int = 0) -> Model:
    """A zero-layer network that knows `bigram_table` of its seed as well as its rank, `d_model`, lets it."""
    table = bigram_table(d_vocab=d_vocab, seed=seed)
    module = ToyTransformer(n_layers=0, d_model=d_model, n_heads=1, d_vocab=d_vocab, n_ctx=8, seed=seed)
    optimiser = torch.optim.Adam([module.embed.weight, module.unembed.weight], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    tokens = torch.arange(d_vocab)[:, None]
    for _ in range(steps):
        loss = F.cross_entropy(module(tokens)[:, 0], table)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return Model(module.requires_grad_(False), name=f"planted-bigram-d{d_model}-seed-{seed}")


def bigram_table(
    *, d_vocab: int = 50, concentration: float = 0.2, seed: int = 0
) -> Float[Tensor, "token next"]:
    """P(next | token): rows of a Dirichlet, the sharper the smaller `concentration`.

    >>> bigram_table(d_vocab=3).sum(1).round(decimals=4)
    tensor([1., 1., 1.])
    """
    generator = torch.Generator().manual_seed(seed)
    gamma = torch._standard_gamma(torch.full((d_vocab, d_vocab), concentration), generator=generator)
    return gamma / gamma.sum(1, keepdim=True)
