"""An ordered collection of saved results with what people say about them: a folder that can be copied.

`study.json` is the index: the model, and for every result its folder, its text and claims, its headlines with
their controls and intervals, and its provenance. It is written beside its final place and renamed, after the
result it names, so that an index never names half a result.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vesalius.errors import VesaliusError
from vesalius.files import whole
from vesalius.method import methods
from vesalius.model import Model
from vesalius.result import Headline, Result

SCHEMA = 1
INDEX = "study.json"


@dataclass(frozen=True)
class Entry:
    """One result in a study, as its index tells of it."""

    folder: str
    """The name of the result's folder inside the study's."""
    name: str
    """The method that made it."""
    text: str
    claims: tuple[str, ...]
    headlines: tuple[Headline, ...]
    provenance: dict[str, Any]


class Study:
    """A new study in an empty or new folder; `Study.load` opens one that exists.

    Raises VesaliusError if the folder holds anything.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "mine"
    >>> study = Study(folder, title="Nothing yet")
    >>> study.skip("logit_lens", "the model has no layers")
    >>> Study.load(folder).skipped
    {'logit_lens': 'the model has no layers'}
    """

    def __init__(
        self, folder: str | Path, *, title: str = "", text: str = "", model: Model | None = None
    ) -> None:
        self.folder = Path(folder)
        self.title = title
        self.text = text
        """What the reader is told first."""
        self.card = None if model is None else card(model)
        """The model under study: name, hash, family, sizes."""
        self.entries: list[Entry] = []
        self.skipped: dict[str, str] = {}
        """Analysis → why it was not made."""
        if self.folder.is_dir() and any(self.folder.iterdir()):
            hint = "; Study.load opens it" if (self.folder / INDEX).exists() else ""
            raise VesaliusError(f"'{self.folder}' is not empty; expected a new folder for a study{hint}")
        self.save()

    def add(self, result: Result, *, text: str = "", claims: Iterable[str] = ()) -> Path:
        """Save `result` as the next of the study, with what people say of it; returns its folder."""
        name = result.provenance.get("method", type(result).__name__)
        folder = self.folder / f"{len(self.entries) + 1:02d}-{name}"
        entry = Entry(folder.name, name, text, tuple(claims), tuple(result.headlines()), result.provenance)
        result.save(folder)
        self.entries.append(entry)
        self.save()
        return folder

    def skip(self, name: str, reason: str) -> None:
        """Record that an analysis was not made, and why."""
        self.skipped[name] = reason
        self.save()

    def result(self, entry: Entry) -> Result:
        """The saved result of one of `entries`, whole."""
        methods()  # every kind of result is known once the methods are imported
        return Result.load(self.folder / entry.folder)

    def save(self) -> Path:
        """Write the index, whole or not at all; `add` and `skip` do so themselves."""
        text = json.dumps(_finite(self.to_json()), indent=1, ensure_ascii=False, allow_nan=False)
        with whole(self.folder / INDEX) as partial:
            partial.write_text(text, encoding="utf-8")
        return self.folder / INDEX

    def to_json(self) -> dict[str, Any]:
        """The index: all but the numbers, which lie in the results' folders."""
        return {
            "schema": SCHEMA,
            "title": self.title,
            "text": self.text,
            "model": self.card,
            "results": [asdict(entry) for entry in self.entries],
            "skipped": self.skipped,
        }

    @classmethod
    def load(cls, folder: str | Path) -> "Study":
        """Open a study that exists.

        Raises VesaliusError if there is none, if it is damaged, or if a result that it names is missing.
        """
        folder = Path(folder)
        path = folder / INDEX
        if not path.is_file():
            raise VesaliusError(f"'{folder}' is not a study; expected a folder with {INDEX}")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise VesaliusError(f"'{path}' is damaged: {error}") from error
        if document.get("schema") != SCHEMA:
            raise VesaliusError(f"'{path}' has schema {document.get('schema')}; this version reads {SCHEMA}")
        study = cls.__new__(cls)
        study.folder = folder
        study.title, study.text, study.card = document["title"], document["text"], document["model"]
        study.entries = [_entry(stored) for stored in document["results"]]
        study.skipped = document["skipped"]
        named = [entry.folder for entry in study.entries]
        missing = [name for name in named if not (folder / name / "result.json").is_file()]
        if missing:
            raise VesaliusError(f"study '{folder}' lacks {', '.join(missing)}, which its {INDEX} names")
        return study


def card(model: Model) -> dict[str, Any]:
    """What a reader must know of a model: name, hash of the weights, family, sizes that it has."""
    family, preprocessing = model.architecture, model.preprocessing
    streams = family is not None and "resid_post" in family.sites
    return {
        "name": model.name,
        "hash": model.hash,
        "architecture": family.name if family else None,
        "parameters": model.n_parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "shape": {name: size for name, size in asdict(model.shape).items() if size or streams}
        if family
        else {},
        **({name: getattr(family, name) for name in ("residual", "norm", "positions")} if streams else {}),
        **({"pictures": [*preprocessing.size, preprocessing.channels]} if preprocessing else {}),
    }


def _finite(value: Any) -> Any:
    """JSON has no nan and no infinity: null stands for both."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _entry(stored: dict[str, Any]) -> Entry:
    headlines = tuple(_headline(headline) for headline in stored["headlines"])
    return Entry(**{**stored, "claims": tuple(stored["claims"]), "headlines": headlines})


def _headline(stored: dict[str, Any]) -> Headline:
    value, interval = stored["value"], stored["interval"]
    ends = None if interval is None else (_unfinite(interval[0]), _unfinite(interval[1]))
    return Headline(**{**stored, "value": _unfinite(value), "interval": ends})


def _unfinite(value: Any) -> Any:
    return math.nan if value is None else value
