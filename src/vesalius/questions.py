"""Questions that a probe is taught to answer: inputs, which of their places are asked about, and the true answers.

| name | asked of | the answer |
|---|---|---|
| `repeated` | every token of random rows | whether it was there before; by design as often early as late |
| `token_class` | every token of a text | word, continuation of one, number, punctuation, space |
| `previous_class`, `next_class` | every token of a text | the same of the token before, or after |
| `image_class` | every picture | its class |
| a file | every text | its label |

What belongs together (a row, a paragraph, a picture, a group that the file names) has one group.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.access import record
from vesalius.data.images import Images, open_images
from vesalius.data.labelled_texts import read_labelled_texts
from vesalius.data.text import heldout_text
from vesalius.errors import Inapplicable, VesaliusError, nearest
from vesalius.model import Model

TOKEN_CLASSES = ("word", "continuation", "number", "punctuation", "space")
OF_TOKENS = ("repeated", "token_class", "previous_class", "next_class")
BATCH = 16
Position = Literal["auto", "last", "mean", "all"]


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


@dataclass(frozen=True, eq=False)
class Answered:
    """The activations of some sites where the question is asked, with the answers."""

    acts: dict[str, Float[Tensor, "row width"]]
    labels: Int[Tensor, " row"]
    inputs: Int[Tensor, " row"]
    """The number of the input that a row is of."""


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
    if str(name) == "auto":
        name = "repeated" if "tokens" in model.kinds else "image_class"
    needed = {"repeated": "tokens", "image_class": "images"}.get(str(name), "tokenizer")
    if needed not in model.kinds:
        about = {"tokens": "tokens", "images": "pictures"}.get(needed, "text")
        has = ", ".join(sorted(model.kinds)) or "no inputs that are known"
        raise Inapplicable(f"'{name}' is a question about {about}; {model.name} has {has}")
    if str(name) == "repeated":
        return _repeated(model, contexts, min(length, model.n_ctx), seed)
    if str(name) == "image_class":
        return _pictures(open_images(images).take(n_images, seed=seed))
    if str(name) in OF_TOKENS:
        return _of_text(model, str(name), heldout_text() if text is None else text, contexts, length)
    if Path(name).suffix or Path(name).exists():
        return _of_file(model, Path(name))
    known = (*OF_TOKENS, "image_class")
    raise VesaliusError(
        f"'{name}' is no question; expected {', '.join(known)} or a file of labelled texts{nearest(str(name), known)}"
    )


@torch.no_grad()
def answered(model: Model, asked: Question, sites: list[str], *, position: Position = "auto") -> Answered:
    """Run the network on all inputs and take the rows that are asked about.

    What is asked of a whole input is read at its last token, from the mean over its places (pictures: the usual), or at
    all of them. Raises VesaliusError if the question is about every token and the position is not `all`, or the
    other way round.
    """
    usual = "all" if asked.of_tokens else "mean" if asked.pictures is not None else "last"
    where = usual if position == "auto" else position
    if asked.of_tokens and where != "all":
        raise VesaliusError(f"'{asked.name}' is asked of every token; expected position 'all', not '{where}'")
    if asked.pictures is not None and where == "last":
        raise VesaliusError("a picture has no last position; expected position 'mean' or 'all'")
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    labels, inputs = [], []
    for numbers, given, lengths in asked.batches(model):
        with record(model, sites, stop=True) as acts:
            model(given)
        answers = torch.nn.utils.rnn.pad_sequence(
            [asked.answers[number].reshape(-1) for number in numbers], batch_first=True, padding_value=-1
        )
        taken = None
        for site in sites:
            value = _by_position(acts[site].cpu(), site, lengths)
            rows, label, example = _taken(value, answers, where, lengths, first=int(model.bos is not None))
            if taken is not None and len(label) != len(taken[0]):
                raise VesaliusError(
                    f"'{site}' has other positions than '{sites[0]}'; expected position 'mean' or one of them"
                )
            taken = label, torch.tensor(numbers)[example]
            parts[site].append(rows.float())
        assert taken is not None
        labels.append(taken[0])
        inputs.append(taken[1])
    return Answered(
        {site: torch.cat(rows) for site, rows in parts.items()}, torch.cat(labels), torch.cat(inputs)
    )


# ------------------------------------------------------------------------------------------------------ the questions


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
    shift = {"token_class": 0, "previous_class": -1, "next_class": 1}[name]
    for paragraph in (paragraphs[number] for number in picked):
        ids = model.tokens(paragraph)[0].tolist()[: min(length, model.n_ctx)]
        classes = [TOKEN_CLASSES.index(token_class(piece)) for piece in model.strings(ids)]
        first = int(model.bos is not None)
        truth = [-1] * len(ids)
        for place in range(first, len(ids)):
            if first <= place + shift < len(ids):
                truth[place] = classes[place + shift]
        kept.append(paragraph)
        rows.append(tuple(ids))
        answers.append(torch.tensor(truth))
    return Question(name, TOKEN_CLASSES, tuple(kept), tuple(answers), tuple(rows))


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


def _pictures(pictures: Images) -> Question:
    if pictures.classes is None:
        raise VesaliusError(
            f"the pictures of {pictures.source} have no classes; expected a folder for each class"
        )
    classes = tuple(sorted(set(pictures.classes)))
    answers = tuple(torch.tensor(classes.index(label)) for label in pictures.classes)
    return Question("image_class", classes, tuple(pictures.names), answers, pictures=pictures)


# ------------------------------------------------------------------------------------------------------------- rows


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


def _by_position(value: Tensor, site: str, lengths: list[int]) -> Float[Tensor, "example position width"]:
    """Maps, tokens and plain vectors alike."""
    if value.dim() == 4 and not lengths:
        return value.flatten(2).mT
    if value.dim() == 2 and not lengths:
        return value[:, None]
    if value.dim() != 3:
        raise VesaliusError(
            f"'{site}' gives {value.dim()} axes, {list(value.shape)}; a probe reads one vector a position, as of "
            "'resid_post@0' or of one head, 'z@0[3]'"
        )
    return value


def _taken(
    value: Float[Tensor, "example position width"],
    answers: Int[Tensor, "example answer"],
    where: str,
    lengths: list[int],
    *,
    first: int,
) -> tuple[Float[Tensor, "row width"], Int[Tensor, " row"], Int[Tensor, " row"]]:
    """Rows, their labels, and the example of each."""
    examples, positions, _ = value.shape
    ends = torch.tensor(lengths or [positions] * examples)
    first = first if lengths else 0
    place = torch.arange(positions)
    if where == "all":
        counts = (place >= first) & (place < ends[:, None])
        truth = answers.expand(-1, positions).masked_fill(~counts, -1)
        return value[truth >= 0], truth[truth >= 0], (truth >= 0).nonzero()[:, 0]
    if where == "last":
        return value[torch.arange(examples), ends - 1], answers[:, 0], torch.arange(examples)
    counts = ((place >= first) & (place < ends[:, None])).to(value)
    mean = (value * counts[..., None]).sum(1) / counts.sum(1, keepdim=True).clamp(min=1)
    return mean, answers[:, 0], torch.arange(examples)
