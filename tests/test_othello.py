"""The rules of Othello against published counts and a plain engine, and random games against the rules."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.data.othello import BLACK, EMPTY, SIZES, WHITE, Rules, random_games
from vesalius.errors import VesaliusError

PERFT = {
    8: [4, 12, 56, 244, 1396, 8200],
    6: [4, 12, 56, 244, 1364, 7604],
    4: [4, 12, 44, 128, 424, 1256, 3624, 9116],
}
STEPS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]


def turned(board: np.ndarray, row: int, column: int, player: int) -> list[tuple[int, int]]:
    """A plain engine: the stones that a move closes in."""
    size, found = len(board), []
    for down, right in STEPS:
        line, r, c = [], row + down, column + right
        while 0 <= r < size and 0 <= c < size and board[r, c] == 3 - player:
            line.append((r, c))
            r, c = r + down, c + right
        if 0 <= r < size and 0 <= c < size and board[r, c] == player:
            found += line
    return found


@pytest.mark.parametrize("size", SIZES)
def test_the_number_of_games_is_the_published_one(size):
    assert [Rules(size).perft(depth) for depth in range(1, len(PERFT[size]) + 1)] == PERFT[size]


@settings(max_examples=20, deadline=None)
@given(size=st.sampled_from(SIZES), seed=st.integers(0, 2**31))
def test_random_games_are_what_a_plain_engine_plays(size, seed):
    games = random_games(size, 2, seed=seed, labels=True, batch=16)
    for moves, boards, legal in zip(games.moves.tolist(), games.boards.numpy(), games.legal.numpy()):
        board = np.zeros((size, size), int)
        low, high = size // 2 - 1, size // 2
        board[low, low] = board[high, high] = WHITE
        board[low, high] = board[high, low] = BLACK
        for ply, move in enumerate(moves):
            player = BLACK if ply % 2 == 0 else WHITE
            row, column = divmod(move, size)
            line = turned(board, row, column, player)
            assert board[row, column] == EMPTY and line, f"ply {ply} is not a legal move"
            for r, c in [(row, column), *line]:
                board[r, c] = player
            assert (board.flatten() == boards[ply]).all()
            free = [divmod(square, size) for square in range(size * size)]
            may = [board[r, c] == EMPTY and bool(turned(board, r, c, 3 - player)) for r, c in free]
            assert (np.array(may) == legal[ply]).all()
        assert (board != EMPTY).all()


def test_the_same_seed_gives_the_same_games_and_another_others():
    first, again, other = (random_games(6, 50, seed=seed).moves for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (50, 32)


def test_moves_are_uniform_over_the_legal_ones():
    opening = random_games(8, 4000, seed=0).moves[:, 0]
    counts = opening.bincount(minlength=64)
    assert (counts > 0).sum() == 4 and counts[counts > 0].min() > 850


def test_the_floor_of_the_loss_is_the_published_one():
    for size, floor in ((8, 2.0131), (6, 1.538)):
        legal = random_games(size, 3000, seed=0, labels=True).legal[:, :-1]
        assert legal.sum(-1).double().log().mean().item() == pytest.approx(floor, abs=0.01)


def test_a_board_of_another_size_is_refused():
    with pytest.raises(VesaliusError, match="expected 4, 6 or 8"):
        Rules(7)
