"""Whether a family sits in one branch: the published numbers, and branches found in networks."""

import pytest
import torch
from torch import nn

import vesalius as vs
from vesalius.errors import VesaliusError
from vesalius.methods.circuits.branch_specialization import branch_widths, hypergeometric
from vesalius.preprocessing import Preprocessing

PIXELS = Preprocessing((16, 16), (0.5,) * 3, (0.25,) * 3)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.three = nn.Conv2d(3, 128, 1), nn.Conv2d(3, 192, 3, padding=1)
        self.five, self.pool = nn.Conv2d(3, 96, 5, padding=2), nn.Conv2d(3, 64, 1)
        self.after = nn.Conv2d(480, 8, 1)

    def forward(self, x):
        parts = [self.one(x), self.three(x), self.five(x), self.pool(nn.functional.max_pool2d(x, 3, 1, 1))]
        return self.after(torch.relu(torch.cat(parts, 1)))


@pytest.fixture(scope="module")
def model() -> vs.Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return vs.Model(
            nn.Sequential(Branches(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()), preprocessing=PIXELS
        )


def test_the_published_tests():
    """30 of 30 curve-related features in 96 of 480 channels, 9 of 9 colour contrasts in 32 of 256."""
    assert hypergeometric(30, 30, 96, 480) < 1e-20
    assert hypergeometric(9, 9, 32, 256) < 1e-8
    assert hypergeometric(0, 9, 32, 256) == 1.0


def test_chances_of_all_numbers_add_up_to_the_mean():
    assert abs(sum(hypergeometric(n, 10, 30, 100) for n in range(1, 11)) - 10 * 30 / 100) < 1e-12


def test_branches_are_found_where_they_are_joined(model):
    assert branch_widths(model, "0.after:in") == [128, 192, 96, 64]
    assert branch_widths(model, "0") == [8]
    assert branch_widths(model, "2") == [4, 4]


def test_a_family_in_one_branch_is_evidence_and_a_spread_one_is_not(model):
    site = "0.after:in"
    within = vs.branch_specialization(model, f"{site}[320]", others=[f"{site}[{n}]" for n in range(330, 359)])
    assert within.fullest["first"] == 320 and within.p < 1e-19 and within.headlines()[0].evidence
    spread = vs.branch_specialization(
        model, f"{site}[5]", others=[f"{site}[{n}]" for n in range(20, 480, 16)]
    )
    assert not spread.headlines()[0].evidence
    assert not vs.branch_specialization(model, f"{site}[330]").headlines()[0].evidence
    assert within.figure().title == f"Branches of {site}"


def test_one_branch_is_judged_neither_way(model):
    assert vs.branch_specialization(model, "0[1]").headlines()[0].evidence is None


def test_what_is_no_family_is_refused(model):
    with pytest.raises(VesaliusError, match="one site"):
        vs.branch_specialization(model, "0[1]", others=["2[0]"])
    with pytest.raises(VesaliusError, match="twice"):
        vs.branch_specialization(model, "0[1]", others=["0[1]"])
