"""Branch specialisation: whether a family of features sits in one branch of its layer.

Voss et al. 2021 (Branch Specialization, distill.pub/2020/circuits/branch-specialization): all 30 curve-related features
of InceptionV1's mixed3b are among the 96 of 480 channels of its 5×5 branch, p < 10⁻²⁰ by the hypergeometric test; all 9
black-and-white against colour detectors of mixed3a among the 32 of 256 of its own, p < 10⁻⁸.

Branches are what the layer's last concatenation joined, or the groups of its last grouped convolution. The null is a
family of as many channels drawn without regard to branches; the p of the fullest branch is multiplied by the number of
branches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vesalius import figures
from vesalius.access import record
from vesalius.dictionaries import Feature
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method
from vesalius.metrics import wilson
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.weights.linearised import Exchange


@dataclass(frozen=True)
class BranchSpecialization(Result):
    """One row for each branch, in the order of channels."""

    family: list
    site: str
    branches: list
    """`{"first", "last", "channels", "members", "p"}`: its channels, how many of the family are in it, and the chance
    of so many or more."""
    p: float
    """Of the least likely branch, times the number of branches; at most 1."""

    @property
    def fullest(self) -> dict:
        """The branch that is least likely to be as full as it is."""
        return min(self.branches, key=lambda branch: branch["p"])

    def headlines(self) -> list[Headline]:
        branch, size = self.fullest, len(self.family)
        channels = sum(one["channels"] for one in self.branches)
        return [
            Headline(
                f"share of the family in the branch of channels {branch['first']}–{branch['last']}",
                branch["members"] / size,
                branch["channels"] / channels,
                wilson(branch["members"], size),
                self.p < 0.01 if len(self.branches) > 1 else None,
                f"{branch['members']} of {size} in {branch['channels']} of {channels} channels, "
                f"{len(self.branches)} branches, p {self.p:.2g}",
            )
        ]

    def figure(self) -> Figure:
        channels = sum(one["channels"] for one in self.branches)
        names = [f"{branch['first']}–{branch['last']}" for branch in self.branches]
        return figures.bars(
            names,
            {
                "share of the family": [branch["members"] / len(self.family) for branch in self.branches],
                "share of all channels": [branch["channels"] / channels for branch in self.branches],
            },
            title=f"Branches of {self.site}",
            y_label="share",
            intervals={
                "share of the family": [
                    wilson(branch["members"], len(self.family)) for branch in self.branches
                ]
            },
            caption=f"{len(self.family)} features, {self.family[0]} first; p {self.p:.2g}.",
        )


@method(needs=("images",))
def branch_specialization(
    model: Model, feature: Feature, *, others: list[str] | None = None
) -> BranchSpecialization:
    """Whether a feature and its family, `others` of the same site, sit in one branch of their layer.

    None of `others` is a family of one, which no test can tell from chance. Raises VesaliusError for a direction,
    which is in no branch, for others of another site, and for a feature named twice.

    >>> from vesalius.testbed import curve_network
    >>> len(branch_specialization(curve_network(), "curves[3]").branches)
    1
    """
    family = [feature, *(model.feature(name) for name in others or [])]
    wrong = [
        str(one) for one in family if one.site != feature.site or one.index is None or one.read is not None
    ]
    if wrong:
        raise VesaliusError(f"{wrong[0]} is no channel of '{feature.site}'; expected channels of one site")
    members = sorted(one.index for one in family if one.index is not None)
    if len(set(members)) < len(members):
        raise VesaliusError("the family names a channel twice; expected each once")
    widths = branch_widths(model, feature.site)
    branches, first = [], 0
    for width in widths:
        held = sum(first <= member < first + width for member in members)
        p = hypergeometric(held, len(members), width, sum(widths))
        branches.append(
            {"first": first, "last": first + width - 1, "channels": width, "members": held, "p": p}
        )
        first += width
    lowest = min(branch["p"] for branch in branches)
    return BranchSpecialization(
        [str(one) for one in family], feature.site, branches, min(1.0, lowest * len(widths))
    )


def hypergeometric(held: int, drawn: int, marked: int, total: int) -> float:
    """Chance that of `drawn` out of `total`, of which `marked` are marked, `held` or more are.

    >>> hypergeometric(1, 1, 1, 4)
    0.25
    """
    most = min(drawn, marked)
    ways = sum(math.comb(marked, n) * math.comb(total - marked, drawn - n) for n in range(held, most + 1))
    return ways / math.comb(total, drawn)


def branch_widths(model: Model, site: str) -> list[int]:
    """Channels of each branch of a site, in order; one number if it has none."""
    width, seen = model.map_shape(site)[0], []

    def joined(function: Callable) -> Callable[..., Tensor]:
        def run(tensors: Any, dim: int = 0, **named: Any) -> Tensor:
            if dim in (1, -3):
                seen.append([tensor.shape[1] for tensor in tensors])
            return function(tensors, dim, **named)

        return run

    def convolved(input: Tensor, *settings: Any, **named: Any) -> Float[Tensor, "batch channel row column"]:
        made = F.conv2d(input, *settings, **named)
        groups = named.get("groups", settings[5] if len(settings) > 5 else 1)
        one = groups == input.shape[1]  # depthwise: each channel for itself, and no branch
        seen.append([made.shape[1]] if one else [made.shape[1] // groups] * groups)
        return made

    table = {F.conv2d: convolved} | {function: joined(function) for function in (torch.cat, torch.concat)}
    pixels = torch.full((1, model.pictures.channels, *model.pictures.size), 0.5)
    with torch.no_grad(), Exchange(table), record(model, site, stop=True):
        model(pixels.to(model.device, model.dtype))
    return next((widths for widths in reversed(seen) if sum(widths) == width), [width])
