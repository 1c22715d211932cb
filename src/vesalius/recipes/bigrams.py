"""Training a network without layers: all that it can learn is which token follows which.

Its logits are W_E W_U whatever the context, so its loss on a text depends on the text through the counts of
token pairs alone (Elhage et al. 2021). One step on the table of counts is one step on the whole text, with
its exact gradient: a full batch of millions of tokens costs three products of d_vocab × d_model matrices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.architectures.toy import ToyTransformer
from vesalius.recipes.measured import after_bos


def pair_counts(rows: Int[Tensor, "row pos"], d_vocab: int) -> Float[Tensor, "token next"]:
    """How often each token follows each, over rows that begin after `<|bos|>`."""
    pairs = after_bos(rows).flatten() * d_vocab + rows.flatten().long()
    return pairs.bincount(minlength=d_vocab**2).view(d_vocab, d_vocab).float()


def bigram_divergence(model: ToyTransformer, counts: Float[Tensor, "token next"]) -> Float[Tensor, ""]:
    """KL from the text's bigrams to the model's, averaged over tokens as often as they occur, in nats."""
    share = counts / counts.sum()
    empirical = torch.log(share / share.sum(1, keepdim=True))
    predicted = model.unembed(model.norm(model.embed.weight)).log_softmax(-1)
    return torch.where(counts > 0, share * (empirical - predicted), 0.0).sum()


def fit_bigrams(
    model: ToyTransformer, counts: Float[Tensor, "token next"], *, steps: int, adam: float, warmup: int = 20
) -> list[float]:
    """Train embedding and unembedding on all counts at once; returns the loss on the text at every step."""
    share = counts / counts.sum()
    optimiser = torch.optim.Adam([model.embed.weight, model.unembed.weight], lr=adam, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, max(steps - step, 0) / max(steps - warmup, 1))
    )
    losses = []
    for step in range(steps):
        logits = model.unembed(model.norm(model.embed.weight))
        loss = F.cross_entropy(logits, share / share.sum(1, keepdim=True).clamp(min=1e-30), reduction="none")
        loss = (loss * share.sum(1)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        print(f"\rstep {step + 1}/{steps}  loss {losses[-1]:.3f}", end="", flush=True)
    return losses
