"""Analyses of networks that play Othello: what is told of boards, of games by hand, and of bad input."""

import pytest
import torch

import vesalius as vs
from vesalius.boards import (
    STATES,
    cases,
    errors,
    next_moves,
    other_colour,
    random_cases,
    random_positions,
    streams,
)
from vesalius.boards.directions import fit_directions, push
from vesalius.data.othello import playable, random_games
from vesalius.data.othello_records import read_record, replay, square_names
from vesalius.errors import VesaliusError
from vesalius.methods.directions.board_rules import followed, grown
from vesalius.methods.directions.board_writers import _parts, _units
from vesalius.testbed import board_tracker, random_attn


def player(**options) -> vs.Model:
    shape = {"n_layers": 2, "d_model": 32, "d_mlp": 64, "d_vocab": 13, "n_ctx": 12} | options
    return random_attn(norm=True, positions="residual", **shape)


def test_sizes_tell_who_plays():
    assert "othello" in player().kinds and "othello" in player(n_ctx=11).kinds
    assert "othello" not in random_attn().kinds and "othello" not in player(n_ctx=13).kinds
    with pytest.raises(VesaliusError, match="needs a model with othello"):
        vs.board_edit(random_attn())


def test_mine_is_of_the_player_who_moves_next():
    model = board_tracker(6)
    given = random_positions(model, 5, seed=0)
    black = random_games(6, 5, seed=0, labels=True).boards[:, :-1]
    assert torch.equal(given.black_and_white, black)
    assert torch.equal(other_colour(other_colour(black)), black)
    white_moves_next = given.boards[:, 0]
    assert torch.equal(white_moves_next == 1, black[:, 0] == 2)
    later = given.boards[:, 1:] == 2  # a stone just put is theirs now
    put = random_games(6, 5, seed=0).moves[:, 1:-1].long()
    assert later.gather(2, put[..., None]).all()


def test_a_perfect_player_plays_what_is_legal_at_every_position():
    given = random_positions(board_tracker(6), 20, seed=0)
    logits = next_moves(board_tracker(6), given)
    assert torch.equal(logits > 0, given.legal[..., playable(6)])


def test_a_record_is_played_as_the_games_are():
    games = random_games(6, 3, seed=0, labels=True)
    again = replay(games.moves, 6)
    assert torch.equal(again.boards, games.boards) and torch.equal(again.legal, games.legal)
    names = square_names(6)
    text = " ".join(names[move] for move in games.moves[0].tolist())
    assert torch.equal(read_record(text.lower(), 6), games.moves[:1])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"moves": "A1"}, r"move 1 of the game record, A1, is not legal; legal are B1, A2, D3, C4"),
        ({"moves": "B1 G7"}, r"'G7' is no square of a board of 4×4; it has A1 to D4"),
        ({"moves": ", "}, "the game record is empty"),
        ({"moves": "B1", "ply": 2}, "the position after 2 moves was asked for; the record reaches 1 to 1"),
        ({"ply": 99}, "the position after 99 moves was asked for"),
        ({"square": "E5"}, "'E5' is no square"),
        ({"moves": "B1", "square": "D4"}, "square D4 is empty, so it cannot be turned"),
        ({"moves": "B1", "square": "B1", "to": "theirs"}, "square B1 is theirs already"),
        ({"first": 1, "last": 5}, "layers 1 to 5 were asked for"),
    ],
)
def test_bad_input_is_one_sentence(given, said):
    with pytest.raises(VesaliusError, match=said):
        vs.board_edit(board_tracker(4), games=20, **given)


def test_an_edit_after_which_nothing_is_legal_is_refused():
    model = board_tracker(4)
    given = random_positions(model, 200, seed=0)
    ply = torch.full((200,), 8)
    for square in range(16):
        made = cases(given, ply, torch.full((200,), square), torch.full((200,), 1))
        stuck = (~made.after.any(1) & (made.old != 1)).nonzero()[:, 0]
        if len(stuck):
            names = square_names(4)
            moves = [names[playable(4)[token - 1]] for token in given.tokens[stuck[0], 1:10].tolist()]
            with pytest.raises(VesaliusError, match="no move is legal"):
                vs.board_edit(model, moves=" ".join(moves), square=names[square], to="mine", games=20)
            return
    pytest.fail("no such position among the games")


def test_errors_count_what_is_predicted_wrongly_and_what_is_missed():
    scores = torch.tensor([[3.0, 2.0, 1.0, -torch.inf]])
    legal = torch.tensor([[True, False, True, False]])
    assert errors(scores, legal).tolist() == [2.0]
    assert errors(scores, torch.tensor([[True, True, False, False]])).tolist() == [0.0]


def test_a_push_is_as_long_as_it_says_and_only_where_it_should_be():
    model = player()
    directions = fit_directions(model, random_positions(model, 60, seed=1))
    found = random_cases(model, 7, change="flip", seed=0)
    made = push(
        directions,
        [0, 1],
        position=found.position,
        squares=found.squares,
        old=found.old,
        new=found.new,
        scale=2.0,
    )
    with vs.record(model, "resid_post@0") as plain:
        model(found.tokens)
    with vs.intervene(model, made.edits()), vs.record(model, "resid_post@0") as pushed:
        model(found.tokens)
    difference = pushed["resid_post@0"] - plain["resid_post@0"]
    torch.testing.assert_close(difference[torch.arange(7), found.position], made.vectors[0])
    difference[torch.arange(7), found.position] = 0
    assert difference.abs().max() == 0
    for layer, vector in made.at_random(0).vectors.items():
        torch.testing.assert_close(vector.norm(dim=1), made.vectors[layer].norm(dim=1))


@pytest.mark.parametrize("layer", [0, 1])
def test_what_all_parts_write_is_the_stream(layer):
    model = player()
    given = random_positions(model, 6, seed=0)
    units = _units(fit_directions(model, given), layer)
    names, written = _parts(model, given, units, layer)
    assert len(names) == len(written) == 2 + (layer + 1) * (model.n_heads + 1)
    torch.testing.assert_close(written.sum(0), streams(model, given)[layer] @ units.T, atol=1e-4, rtol=1e-4)


def test_a_planted_rule_is_grown_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    states = torch.randint(0, 3, (4000, 16), generator=generator)
    conditions = torch.nn.functional.one_hot(states, 3).flatten(1) > 0
    conditions = torch.cat([conditions, ~conditions], 1)
    planted = conditions[:, [3, 10, 48 + 23]].all(1)
    noise = torch.rand(4000, generator=generator) < 0.1
    rules = grown(conditions[:2000], torch.stack([planted, noise], 1)[:2000], 4)
    assert sorted(rules[:3, 0].tolist()) == [3, 10, 71] and rules[3, 0] == -1
    held = followed(conditions[2000:], rules)
    assert torch.equal(held[:, 0], planted[2000:])
    assert (held[:, 1] & noise[2000:]).sum() < 0.3 * noise[2000:].sum() + held[:, 1].sum() * 0.2


def test_views_name_three_states_each():
    assert all(len(names) == 3 and names[0] == "empty" for names in STATES.values())
