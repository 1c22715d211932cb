"""Probes with a hidden layer: what can be read at all, beside which a linear probe is judged.

As Li et al. 2023 (Emergent World Representations, arXiv 2210.13382) use them: one hidden layer for each layer of the
network, which all targets share; all layers learn at once.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.probes.labelled import Labelled
from vesalius.probes.linear import layered
from vesalius.probes.moments import spread

BATCH = 512


@dataclass(frozen=True, eq=False)
class MLPProbes:
    """ReLU perceptrons, one for each layer, with the scores of all targets' classes."""

    W_in: Float[Tensor, "layer width hidden"]
    b_in: Float[Tensor, "layer hidden"]
    W_out: Float[Tensor, "layer target hidden class"]
    b_out: Float[Tensor, "layer target class"]
    kind: str = "mlp"

    def logits(self, acts: Float[Tensor, "*layer row width"]) -> Float[Tensor, "layer row target class"]:
        """The score of every class; differentiable."""
        acts = layered(acts, layers=len(self.W_in), width=self.W_in.shape[1])
        return _scores(acts.to(self.W_in), self.W_in, self.b_in, self.W_out) + self.b_out[:, None]

    def probabilities(
        self, acts: Float[Tensor, "*layer row width"]
    ) -> Float[Tensor, "layer row target class"]:
        """The probability of every class."""
        return self.logits(acts).softmax(-1)

    def predictions(self, acts: Float[Tensor, "*layer row width"]) -> Int[Tensor, "layer row target"]:
        """The likeliest class."""
        return self.logits(acts).argmax(-1)


def mlp(
    labelled: Labelled,
    *,
    hidden: int = 128,
    steps: int = 400,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> MLPProbes:
    """Adam on batches of `BATCH` rows, for all layers at once, with a rate that falls to 0 as a cosine does.

    >>> acts = torch.tensor([[-1.0, 0.3], [-2.0, 0.1], [1.0, 0.2], [2.0, 0.4]])
    >>> mlp(Labelled.of(acts, torch.tensor([0, 1, 1, 0])), steps=100).predictions(acts).flatten().tolist()
    [0, 1, 1, 0]
    """
    mean, sd = spread(labelled)
    generator, outputs = torch.Generator().manual_seed(seed), labelled.targets * labelled.classes

    def drawn(*shape: int) -> Tensor:
        return torch.randn(labelled.layers, *shape, generator=generator).to(mean) / shape[-2] ** 0.5

    W_in, b_in = drawn(labelled.width, hidden), mean.new_zeros(labelled.layers, hidden)
    W_out = rearrange(drawn(hidden, outputs), "l h (t c) -> l t h c", t=labelled.targets)
    b_out = mean.new_zeros(labelled.layers, labelled.targets, labelled.classes)
    parameters = [part.requires_grad_() for part in (W_in, b_in, W_out, b_out)]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    done = 0
    with torch.enable_grad():
        while done < steps:
            for acts, labels in _batches(labelled):
                x = (acts.float() - mean[:, None]) / sd[:, None]
                scores = _scores(x, W_in, b_in, W_out) + b_out[:, None]
                truth = labels.expand(labelled.layers, -1, -1).long()
                loss = F.cross_entropy(
                    rearrange(scores, "l row t c -> (l row t) c"), truth.flatten(), ignore_index=-1
                )
                optimiser.zero_grad()
                (loss * labelled.layers).backward()
                optimiser.step()
                falling.step()
                done += 1
                if done == steps:
                    break
    W_in, b_in, W_out, b_out = (part.detach() for part in parameters)
    W_in = W_in / sd[:, :, None]
    return MLPProbes(W_in, b_in - torch.einsum("lwh,lw->lh", W_in, mean), W_out, b_out)


def _scores(
    acts: Tensor, W_in: Tensor, b_in: Tensor, W_out: Tensor
) -> Float[Tensor, "layer row target class"]:
    hidden = (acts @ W_in + b_in[:, None]).relu()
    flat = rearrange(W_out, "l t h c -> l h (t c)")
    return rearrange(hidden @ flat, "l row (t c) -> l row t c", t=W_out.shape[1])


def _batches(labelled: Labelled):
    for acts, labels in labelled.again():
        for first in range(0, len(labels), BATCH):
            yield acts[:, first : first + BATCH], labels[first : first + BATCH]
