"""The dose–response curve of steering: how much an edit of growing strength moves what it is meant to move, and what
else it moves, beside directions that mean nothing.

The effect is the change of log P(answer with the concept) - log P(answer without) over prompts (nats). What is spilt
is the KL divergence of the next-token distributions on other text, and its perplexity. The same is done with random
directions of equal norm, with directions fitted to shuffled labels, and in random-init twins with directions of their
own: an effect stands if its slope's whole interval lies above the family-wise 1% level of all of these, and above
twice the steepest of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import Edit, intervene
from vesalius.concepts.prompts import Answers, preference
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.metrics import bootstrap, bootstrap_band, family_wise, kl, token_losses
from vesalius.model import Model
from vesalius.result import Headline, Result

Steer = Callable[[float], Mapping[str, Edit]]
"""The edits of one strength."""
SPILT = 0.1
"""A KL divergence in nats that is still called small."""


@dataclass(frozen=True)
class DoseResponse(Result):
    """Effects in nats and what is spilt, by strength; nulls have one row for each random direction and so on."""

    strengths: list
    effect: Float[Tensor, "strength prompt"]
    """The preference under each strength less that without."""
    low: Float[Tensor, " strength"]
    high: Float[Tensor, " strength"]
    nulls: dict
    """`random`, `shuffled` and `twin`: mean effects `[draw, strength]`."""
    slope: list
    """Effect per unit of strength, with its interval over prompts: `[mean, low, high]`."""
    null_slopes: dict
    chance: float
    """What the steepest of the nulls passes once in a hundred times, and no less than twice the steepest seen."""
    kl: Float[Tensor, "strength row"]
    random_kl: Float[Tensor, " strength"]
    perplexity: Float[Tensor, " strength"]
    reading: dict
    """What is known of the direction itself: held-out accuracy, its norm, warnings."""
    choices: dict

    @property
    def gentle(self) -> int:
        """The number of the strength of largest effect that spills less than SPILT nats."""
        spilt = self.kl.mean(1)
        allowed = [number for number in range(len(self.strengths)) if spilt[number] <= SPILT]
        return max(allowed, key=lambda number: self.effect[number].mean().item(), default=0)

    def headlines(self) -> list[Headline]:
        best, spilt = self.gentle, self.kl.mean(1)
        warning = self.reading.get("warning", "")
        rows = [
            Headline(
                f"effect of steering by {self.choices['what']}, nats per unit of strength",
                self.slope[0],
                self.chance,
                (self.slope[1], self.slope[2]),
                self.slope[1] > self.chance,
                f"control: random directions, shuffled labels, random-init twins{'; ' + warning if warning else ''}",
            ),
            Headline(
                f"effect at strength {self.strengths[best]:g}, the largest that spills at most {SPILT} nats",
                self.effect[best].mean().item(),
                self.nulls["random"][:, best].mean().item(),
                (self.low[best].item(), self.high[best].item()),
                note=f"KL on other text {spilt[best]:.3f}, perplexity {self.perplexity[best]:.1f} "
                f"(without {self.perplexity[self.strengths.index(0.0)]:.1f})",
            ),
        ]
        if "accuracy" in self.reading:
            rows.append(
                Headline(
                    "held-out accuracy of the direction",
                    self.reading["accuracy"],
                    0.5,
                    note="descriptive: reading_vectors has its controls",
                )
            )
        return rows

    def figure(self) -> Figure:
        series = {"steered": self.effect.mean(1)} | {
            name: values.mean(0) for name, values in self.nulls.items() if len(values)
        }
        what = self.choices["what"]
        drawn = [
            figures.lines(
                self.strengths,
                series,
                title=f"Steering by {what}: effect",
                x_label="strength",
                y_label="change of log-odds, nats",
                bands={"steered": (self.low, self.high)},
                caption=f"{self.choices['effect']}; nulls are means over draws.",
            ),
            figures.lines(
                self.strengths,
                {"steered": self.kl.mean(1), "random": self.random_kl},
                title="What else moves",
                x_label="strength",
                y_label="KL on other text, nats",
                caption=self.choices["text"],
            ),
        ]
        return figures.group(drawn, title=f"Dose and response: {what}")


@torch.no_grad()
def dose_response(
    model: Model,
    steer: Steer,
    *,
    strengths: Sequence[float],
    answers: Answers,
    rows: Int[Tensor, "row pos"],
    random: Sequence[Steer],
    shuffled: Sequence[Steer] = (),
    twins: Sequence[tuple[Model, Steer]] = (),
    reading: dict | None = None,
    choices: dict,
    seed: int = 0,
) -> DoseResponse:
    """Measure one way of steering at every strength, with its nulls; strength 0 is added where it is missing.

    Raises VesaliusError for a strength at which logits become NaN or infinite, and says which.
    """
    doses = sorted({0.0, *map(float, strengths)})
    if len(doses) < 2:
        raise VesaliusError(
            f"steering was given the strengths {list(strengths)}; expected at least one that is not 0"
        )
    effect = effects(model, steer, doses, answers)
    nulls = {
        "random": [effects(model, one, doses, answers).mean(1) for one in random],
        "shuffled": [effects(model, one, doses, answers).mean(1) for one in shuffled],
        "twin": [effects(twin, one, doses, answers).mean(1) for twin, one in twins],
    }
    stacked = {
        name: torch.stack(values) if values else torch.zeros(0, len(doses)) for name, values in nulls.items()
    }
    spilt, losses = spills(model, steer, doses, rows)
    spilt_random = spills(model, random[0], doses, rows)[0] if random else torch.zeros_like(spilt)
    slopes, null_slopes = slope(effect, doses), {n: slope(v.T, doses) for n, v in stacked.items() if len(v)}
    steep = torch.cat([*null_slopes.values(), torch.zeros(1)]).abs()
    chance = max(family_wise(steep), 2 * steep.max().item())
    low, high = bootstrap_band(effect.T, seed=seed)
    return DoseResponse(
        doses, effect, low, high, stacked, [slopes.mean().item(), *bootstrap(slopes, seed=seed)],
        {name: values.tolist() for name, values in null_slopes.items()}, chance, spilt,
        spilt_random.mean(1), losses.mean(1).exp(), reading or {}, choices,
    )  # fmt: skip


def effects(
    model: Model, steer: Steer, strengths: Sequence[float], answers: Answers
) -> Float[Tensor, "strength prompt"]:
    """The preference at every strength less that without an edit."""
    plain = preference(model, answers)
    return torch.stack([
        torch.zeros_like(plain) if dose == 0 else _at(model, steer, dose, lambda: preference(model, answers)) - plain
        for dose in strengths
    ])  # fmt: skip


def spills(
    model: Model, steer: Steer, strengths: Sequence[float], rows: Int[Tensor, "row pos"]
) -> tuple[Float[Tensor, "strength row"], Float[Tensor, "strength row"]]:
    """KL divergence from the plain network per token, and the loss, on rows of other text."""
    plain = model.logits(rows).float()
    found = []
    for dose in strengths:
        logits = plain if dose == 0 else _at(model, steer, dose, lambda: model.logits(rows).float())
        found.append(
            (kl(plain, logits).mean(1).cpu(), token_losses(logits, rows.to(logits.device)).mean(1).cpu())
        )
    return torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])


def slope(values: Float[Tensor, "strength sample"], strengths: Sequence[float]) -> Float[Tensor, " sample"]:
    """The least-squares line of each column through the strengths: its rise per unit."""
    x = torch.tensor(strengths, dtype=values.dtype)
    x = x - x.mean()
    return (x[:, None] * values).sum(0) / x.square().sum()


def _at(model: Model, steer: Steer, dose: float, measured: Callable[[], Tensor]) -> Tensor:
    """A measurement under the edits of one strength, which an error names."""
    try:
        with intervene(model, steer(dose)):
            return measured()
    except VesaliusError as error:
        raise VesaliusError(f"at strength {dose:g}: {error}") from None
