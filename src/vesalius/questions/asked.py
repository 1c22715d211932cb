"""What is asked: the inputs of a network, and what is true of each or of its tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vesalius.data.images import Images, open_images
from vesalius.data.labelled_texts import read_labelled_texts
from vesalius.data.text import heldout_text
from vesalius.errors import Inapplicable, VesaliusError, nearest
from vesalius.model import Model

TOKEN_CLASSES = ("word", "continuation", "number", "punctuation", "space")
OF_TOKENS = ("repeated", "token_class", "previous_class", "next_class")
BATCH = 16


@dataclass(frozen=True, eq=False)
class Question:
    """Inputs of a network, as token rows or as pictures, and the class that is true of each, or of its tokens."""

    name: str
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    """Of each input."""
    answers: tuple[Int[Tensor, "..."], ...]
    """Of each input: one class, or one for every token, -1 where nothing is asked."""
    rows: tuple[tuple[int, ...], ...] = ()
    pictures: Images | None = None

    @property
    def of_tokens(self) -> bool:
        return self.answers[0].dim() > 0

    def batches(self, model: Model) -> Iterator[tuple[list[int], Any, list[int]]]:
        """Numbers of inputs, what the model takes, and how many tokens each has."""
        if self.pictures is not None:
            for numbers, pixels in self.pictures.batches(model.pictures, batch=BATCH):
                yield numbers, pixels.to(device=model.device, dtype=model.dtype), []
            return
        order = sorted(range(len(self.rows)), key=lambda number: len(self.rows[number]))
        for first in range(0, len(order), BATCH):
            numbers = order[first : first + BATCH]
            lengths = [len(self.rows[number]) for number in numbers]
            yield numbers, _padded(model, [self.rows[number] for number in numbers]), lengths


def question(
    model: Model,
    name: str | Path,
    *,
    text: str | None = None,
    contexts: int,
    length: int,
    images: str | Path | Images,
    n_images: int,
    seed: int,
) -> Question:
    """The question of this name, or that a file of labelled texts asks; `auto` is the one that always can be asked.

    Raises VesaliusError for an unknown name, and Inapplicable if the model cannot be asked it.
    """
    name = checked(model, name)
    if name == "repeated":
        return _repeated(model, contexts, min(length, model.n_ctx), seed)
    if name == "image_class":
        return of_pictures(open_images(images).take(n_images, seed=seed))
    if name in OF_TOKENS:
        return _of_text(model, name, heldout_text() if text is None else text, contexts, length)
    if Path(name).suffix or Path(name).exists():
        return _of_file(model, Path(name))
    known = (*OF_TOKENS, "image_class")
    raise VesaliusError(
        f"'{name}' is no question; expected {', '.join(known)} or a file of labelled texts{nearest(name, known)}"
    )


def _repeated(model: Model, contexts: int, length: int, seed: int) -> Question:
    """Rows in which every token but the first is, with even chances, one that was there or one that was not."""
    generator = torch.Generator().manual_seed(seed)
    bos = model.bos
    rows, answers = [], []
    for _ in range(contexts):
        fresh = [
            token for token in torch.randperm(model.d_vocab, generator=generator).tolist() if token != bos
        ]
        body, truth = [fresh.pop()], [-1]
        coins = torch.rand(length, generator=generator).tolist()
        places = torch.rand(length, generator=generator).tolist()
        for coin, place in zip(coins, places):
            if len(body) + (bos is not None) == length:
                break
            again = coin < 0.5 or not fresh
            body.append(body[int(place * len(body))] if again else fresh.pop())
            truth.append(int(again))
        rows.append((*([] if bos is None else [bos]), *body))
        answers.append(torch.tensor([*([] if bos is None else [-1]), *truth]))
    groups = tuple(f"row {number}" for number in range(contexts))
    return Question("repeated", ("new", "repeated"), groups, tuple(answers), tuple(rows))


def _of_text(model: Model, name: str, text: str, contexts: int, length: int) -> Question:
    """Paragraphs, as many as asked for and evenly over the text; each is a row and a group."""
    paragraphs = list(dict.fromkeys(part.strip() for part in text.split("\n\n") if part.strip()))
    if len(paragraphs) < 3:
        raise VesaliusError(
            f"the text has {len(paragraphs)} paragraphs; to fit, choose and judge takes three or more, parted by an "
            "empty line"
        )
    picked = torch.linspace(0, len(paragraphs) - 1, min(contexts, len(paragraphs))).round().long().tolist()
    kept, rows, answers = [], [], []
    for paragraph in (paragraphs[number] for number in picked):
        ids = model.tokens(paragraph)[:1, : min(length, model.n_ctx)].cpu()
        special = torch.zeros_like(ids, dtype=torch.bool)
        special[:, : int(model.bos is not None)] = True
        kept.append(paragraph)
        rows.append(tuple(ids[0].tolist()))
        answers.append(token_answers(model, name, ids, special, torch.zeros_like(ids))[0])
    return Question(name, TOKEN_CLASSES, tuple(kept), tuple(answers), tuple(rows))


def checked(model: Model, name: str | Path) -> str:
    """The name of a question, of `auto` the one that always can be asked. Raises Inapplicable if the model cannot."""
    if str(name) == "auto":
        name = "repeated" if "tokens" in model.kinds else "image_class"
    needed = {"repeated": "tokens", "image_class": "images"}.get(str(name), "tokenizer")
    if needed not in model.kinds:
        about = {"tokens": "tokens", "images": "pictures"}.get(needed, "text")
        has = ", ".join(sorted(model.kinds)) or "no inputs that are known"
        raise Inapplicable(f"'{name}' is a question about {about}; {model.name} has {has}")
    return str(name)


def token_answers(
    model: Model,
    name: str,
    ids: Int[Tensor, "context position"],
    special: Bool[Tensor, "context position"],
    documents: Int[Tensor, "context position"],
) -> Int[Tensor, "context position"]:
    """The answers to a question of tokens, -1 where nothing is asked: of what is special, of the first token whether
    it was there before, and of a token beyond the document or the context."""
    if name == "repeated":
        answers = torch.full(ids.shape, -1)
        for row, (tokens, skipped) in enumerate(zip(ids.tolist(), special.tolist())):
            seen: set[int] = set()
            for place, token in enumerate(tokens):
                if not skipped[place]:
                    answers[row, place] = int(token in seen) if seen else -1
                    seen.add(token)
        return answers
    known, number = ids.unique(return_inverse=True)
    classes = torch.tensor([TOKEN_CLASSES.index(token_class(piece)) for piece in model.strings(known)])
    classes = classes[number].masked_fill(special, -1)
    if name == "token_class":
        return classes
    shift = {"previous_class": 1, "next_class": -1}[name]
    other, owner = classes.roll(shift, 1), documents.roll(shift, 1)
    other[:, 0 if shift == 1 else -1] = -1
    return other.masked_fill(special | (owner != documents), -1)


def token_class(piece: str) -> str:
    """What kind of a token a piece of text is.

    >>> [token_class(piece) for piece in (" the", "ing", " 42", "!", "\\n")]
    ['word', 'continuation', 'number', 'punctuation', 'space']
    """
    bare = piece.strip()
    if not bare:
        return "space"
    if any(character.isdigit() for character in bare):
        return "number"
    if not any(character.isalpha() for character in bare):
        return "punctuation"
    return "word" if piece[0].isspace() else "continuation"


def _of_file(model: Model, path: Path) -> Question:
    found = read_labelled_texts(path)
    rows = tuple(tuple(model.tokens(text)[0].tolist()) for text in found.texts)
    answers = tuple(torch.tensor(found.classes.index(label)) for label in found.labels)
    return Question(path.stem, found.classes, found.groups, answers, rows)


def of_pictures(pictures: Images) -> Question:
    if pictures.classes is None:
        raise VesaliusError(
            f"the pictures of {pictures.source} have no classes; expected a folder for each class"
        )
    classes = tuple(sorted(set(pictures.classes)))
    answers = tuple(torch.tensor(classes.index(label)) for label in pictures.classes)
    return Question("image_class", classes, tuple(pictures.names), answers, pictures=pictures)


def _padded(model: Model, rows: list[tuple[int, ...]]) -> Tensor | Mapping[str, Tensor]:
    """Token rows as one tensor, with a mask where they differ in length."""
    longest = max(map(len, rows))
    if longest > model.n_ctx:
        raise VesaliusError(f"a text is {longest} tokens; {model.name} reads at most {model.n_ctx}")
    ids = torch.tensor(
        [[*row, *[model.bos or 0] * (longest - len(row))] for row in rows], device=model.device
    )
    if all(len(row) == longest for row in rows):
        return ids
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    mask = torch.arange(longest, device=model.device) < lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}
