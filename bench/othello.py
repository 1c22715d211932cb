"""Random games of Othello with the board and the legal moves after every ply: ours beside a plain engine."""

import random

import torch

from bench.cases import Side

SIZE, GAMES = 8, 4_000
STEPS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]


def ours() -> Side:
    """Bitboards of all games at once."""
    from vesalius.data.othello import random_games

    def run() -> torch.Tensor:
        games = random_games(SIZE, GAMES, seed=0, labels=True)
        return torch.tensor([len(games.moves), games.legal.shape[1]])

    return run


def plain() -> Side:
    """One board after the other, a list of lists, as one writes it down."""

    def run() -> torch.Tensor:
        draw, kept = random.Random(0), 0
        while kept < GAMES:
            kept += played(draw) is not None
        return torch.tensor([kept, SIZE * SIZE - 4])

    return run


def played(draw: random.Random) -> list | None:
    """The labels of one game, or None if it comes to a pass."""
    board = [[0] * SIZE for _ in range(SIZE)]
    low, high = SIZE // 2 - 1, SIZE // 2
    board[low][low] = board[high][high] = 2
    board[low][high] = board[high][low] = 1
    player, labels, moves = 1, [], legal_moves(board, 1)
    for ply in range(SIZE * SIZE - 4):
        if not moves:
            return None
        row, column = draw.choice(sorted(moves))
        for r, c in [(row, column), *moves[row, column]]:
            board[r][c] = player
        player = 3 - player
        moves = legal_moves(board, player)
        labels.append(([line[:] for line in board], set(moves), ply))
    return labels


def legal_moves(board: list[list[int]], player: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Every legal move with the stones it turns."""
    moves = {}
    for row in range(SIZE):
        for column in range(SIZE):
            if board[row][column]:
                continue
            turned = []
            for down, right in STEPS:
                line, r, c = [], row + down, column + right
                while 0 <= r < SIZE and 0 <= c < SIZE and board[r][c] == 3 - player:
                    line.append((r, c))
                    r, c = r + down, c + right
                if line and 0 <= r < SIZE and 0 <= c < SIZE and board[r][c] == player:
                    turned += line
            if turned:
                moves[row, column] = turned
    return moves
