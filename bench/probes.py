"""Probes: all 64 squares of a layer in one solve, against scikit-learn's logistic regression square by square.

Activations of 512 units on 100,000 rows that hold the state of 64 squares, three classes each, among noise. Layers
share nothing, so that one stands for eight; scikit-learn fits `FITTED` of the 64 squares. Both return the accuracy on
20,000 rows that neither saw.

- `falling`: standard deviations fall as 1/i, about as in the residual stream of a network that plays Othello.
  scikit-learn needs hundreds of iterations, so that it fits one square, in 1,000 at most.
- `equal`: all are alike, which is scikit-learn's best case: a dozen iterations.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from vesalius.probes import Labelled, logistic

ROWS, HELD, WIDTH, SQUARES, CLASSES = 100_000, 20_000, 512, 64, 3
FITTED = {"falling": 1, "equal": 4}
"""Squares that scikit-learn fits."""
PENALTY = 1e-5
"""C = 1 of scikit-learn on activations of variance 1."""


@cache
def data(spectrum: str) -> tuple[Tensor, Tensor]:
    """Rows that are fitted and rows that are held out, of mean 0 and mean variance 1, and the states of the squares."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randint(0, CLASSES, (ROWS + HELD, SQUARES), generator=generator)
    directions = torch.randn(SQUARES * CLASSES, WIDTH, generator=generator)
    written = torch.nn.functional.one_hot(states, CLASSES).float().flatten(1) @ directions
    acts = written + 10 * torch.randn(written.shape, generator=generator)
    if spectrum == "falling":
        turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
        acts = acts / torch.arange(1, WIDTH + 1) @ turn
    acts = acts - acts.mean(0)
    return acts / acts.square().mean().sqrt(), states


def one_solve(spectrum: str) -> Callable[[], Tensor]:
    acts, states = data(spectrum)

    def run() -> Tensor:
        probes = logistic(Labelled.of(acts[:ROWS], states[:ROWS]), penalty=PENALTY)
        right = probes.predictions(acts[ROWS:])[0] == states[ROWS:]
        return right[:, : FITTED[spectrum]].float().mean(0)

    return run


def square_by_square(spectrum: str) -> Callable[[], Tensor]:
    from sklearn.linear_model import LogisticRegression

    acts, states = data(spectrum)

    def run() -> Tensor:
        accuracies = []
        for square in range(FITTED[spectrum]):
            probe = LogisticRegression(C=1.0, max_iter=1000)
            probe.fit(acts[:ROWS].numpy(), states[:ROWS, square].numpy())
            accuracies.append(probe.score(acts[ROWS:].numpy(), states[ROWS:, square].numpy()))
        return torch.tensor(accuracies)

    return run
