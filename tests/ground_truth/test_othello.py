"""G14, Othello: the rules, the floors of the loss, probes and edits where the truth is known, and the network shipped.

(a) counts of games by depth; (b) the least loss there can be, for games of uniformly random moves; (c) on a network
that keeps the board by construction, probes read every square and edits change what is played exactly, and on
shuffled boards they read no more than the likeliest state; (d) the network of the zoo plays legally, keeps mine and
theirs rather than black and white, and plays by the board that is edited into it.
"""

import pytest
import torch

import vesalius as vs
from vesalius.boards import STATES, next_moves, random_positions
from vesalius.data.othello import Rules, random_games
from vesalius.formats import zoo
from vesalius.testbed import board_tracker

PERFT = {8: [4, 12, 56, 244, 1396], 6: [4, 12, 56, 244, 1364], 4: [4, 12, 44, 128, 424, 1256, 3624, 9116]}


@pytest.mark.parametrize("size", PERFT)
def test_a_games_by_depth(size):
    assert [Rules(size).perft(depth + 1) for depth in range(len(PERFT[size]))] == PERFT[size]


@pytest.mark.parametrize(("size", "floor"), [(8, 2.0131), (6, 1.538)])
def test_b_the_floor_of_the_loss(size, floor):
    legal = random_games(size, 6_000, seed=1, labels=True).legal[:, :-1]
    assert legal.sum(-1).double().log().mean().item() == pytest.approx(floor, abs=0.005)


def test_c_probes_read_a_board_that_is_there_and_no_shuffled_one():
    found = vs.board_probes(board_tracker(4), games=150, held_out=50, steps=20, twins=1)
    for view in STATES:
        if view == "mine/theirs":
            assert found.linear[view].min() == 1.0
    assert (found.shuffled - found.prior["mine/theirs"]).abs().max() < 0.03


@pytest.mark.parametrize("change", ["flip", "erase"])
@pytest.mark.parametrize("size", [4, 6])
def test_c_edits_of_a_board_that_is_there_change_exactly_what_is_played(size, change):
    found = vs.board_interventions(
        board_tracker(size), cases=60, games=100, change=change, scale=1, first=0, last=0, steps=100
    )
    assert found.mean("before") == found.mean("linear") == 0
    assert found.mean("null") > 0.5
    assert found.mean("gradient") <= 0.1 * found.mean("null")
    assert found.mean("random direction") >= 0.9 * found.mean("null")


def test_c_a_move_rests_on_the_squares_that_make_it_legal():
    found = vs.latent_saliency(board_tracker(6), positions=6, games=60, scale=1, first=0, last=0)
    assert torch.equal(found.saliency > 5, found.matters > 0)
    fall, null = found.headlines()[0].value, found.headlines()[0].control
    assert fall > 8 and abs(null) < 1


def test_d_the_network_of_the_zoo_plays_legally():
    model, card = vs.load("zoo/othello-6"), zoo.cards()["zoo/othello-6"]
    given = random_positions(model, 100, seed=77)
    from vesalius.data.othello import playable
    from vesalius.recipes.othello import likeliest_is_legal

    share = likeliest_is_legal(next_moves(model, given), given.legal[..., playable(6)]).float().mean().item()
    assert share == pytest.approx(card["measured"]["legal_share"], abs=0.01)
    assert share > 0.97


@pytest.mark.slow
def test_d_mine_and_theirs_are_read_better_than_black_and_white():
    found = vs.board_probes(vs.load("zoo/othello-6"), games=300, held_out=100, steps=100, twins=1)
    best = found.best
    assert found.linear["mine/theirs"][best].mean() - found.linear["black/white"][best].mean() >= 0.10
    assert all(headline.evidence for headline in found.headlines()[:2])


@pytest.mark.slow
def test_d_the_network_plays_by_the_board_that_is_edited_into_it():
    found = vs.board_interventions(vs.load("zoo/othello-6"), cases=200)
    assert found.mean("linear") <= 0.4 * found.mean("null")
    assert found.mean("random direction") >= 0.9 * found.mean("null")
