"""What an analysis hands back: numbers, the control beside them, and enough to run it again.

A `Result` is a frozen dataclass of tensors and JSON values. It is saved as a folder of two files, `result.json`
and `tensors.safetensors`, written beside their final place and renamed, so that a folder that exists is whole.
"""

import dataclasses
import json
import math
import shutil
import typing
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vesalius.errors import VesaliusError, nearest
from vesalius.files import whole

if TYPE_CHECKING:
    from vesalius.figures import Figure

SCHEMA = 1


@dataclass(frozen=True)
class Headline:
    """One row of the summary: a claim, its number, the number where nothing should be found, and the verdict.

    `evidence` is True where the claim stands against its control, False where it does not, None for a number
    that describes and claims nothing.
    """

    claim: str
    value: float | str
    control: float | str | None = None
    interval: tuple[float, float] | None = None
    evidence: bool | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        return {True: "evidence", False: "no evidence", None: "descriptive"}[self.evidence]


@dataclass(frozen=True)
class Result:
    """Numbers with their control, uncertainty and provenance; `headlines` and `figure` are each analysis's own."""

    provenance: dict = field(default_factory=dict, kw_only=True)
    """What made this: method, parameters, model name and hash, versions, seconds. Filled in by `@method`."""

    _kinds: ClassVar[dict[str, type["Result"]]] = {}

    def __init_subclass__(cls) -> None:
        Result._kinds[cls.__name__] = cls

    def headlines(self) -> list[Headline]:
        """The claims this result makes, each with its control."""
        raise NotImplementedError(f"{type(self).__name__} has no headlines")

    def figure(self) -> "Figure":
        """The picture of this result."""
        raise NotImplementedError(f"{type(self).__name__} has no figure")

    def summary(self) -> str:
        """The headlines as plain text, one a line."""
        return "\n".join(_line(headline) for headline in self.headlines())

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values: tensors as nested lists, complex numbers as [re, im], nan and inf as null."""
        values = {name: _plain(value) for name, value in _fields(self).items()}
        headlines = [_plain(dataclasses.asdict(headline)) for headline in self.headlines()]
        return {"schema": SCHEMA, "kind": type(self).__name__, "headlines": headlines, **values}

    def save(self, folder: str | Path) -> Path:
        """Write the result as a folder, whole or not at all; an existing saved result is replaced."""
        folder = Path(folder)
        if folder.exists() and not (folder / "result.json").exists() and any(folder.iterdir()):
            raise VesaliusError(
                f"'{folder}' exists and is not a saved result; expected a new or empty folder"
            )
        tensors: dict[str, Tensor] = {}
        values = {name: _detach(value, name, tensors) for name, value in _fields(self).items()}
        kind = type(self)
        document = {"schema": SCHEMA, "kind": kind.__name__, "module": kind.__module__, "fields": values}
        with whole(folder) as partial:
            partial.mkdir()
            (partial / "result.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
            try:
                if tensors:
                    save_file(tensors, partial / "tensors.safetensors")
                    shutil.copymode(
                        partial / "result.json", partial / "tensors.safetensors"
                    )  # it writes for one's self
            except SafetensorError as error:
                raise VesaliusError(f"'{folder}' could not be written: {error}") from None
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Result":
        """Read a saved result; as `Result.load` any kind, as a subclass that kind only."""
        folder = Path(folder)
        path = folder / "result.json"
        if not path.exists():
            raise VesaliusError(f"'{folder}' is not a saved result; expected a folder with result.json")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            saved = folder / "tensors.safetensors"
            tensors = load_file(saved) if saved.exists() else {}
        except (json.JSONDecodeError, SafetensorError) as error:
            raise VesaliusError(f"saved result '{folder}' is damaged: {error}") from error
        module = document.get("module", "")
        if document["kind"] not in Result._kinds and module.startswith("vesalius.") and find_spec(module):
            import_module(module)  # a kind that this process has not met; of ours, and of nobody else's
        kind = Result._kinds.get(document["kind"])
        if kind is None or not issubclass(kind, cls):
            known = [name for name, other in Result._kinds.items() if issubclass(other, cls)]
            raise VesaliusError(
                f"'{folder}' holds a {document['kind']}; expected {cls.__name__}{nearest(document['kind'], known)}"
            )
        kinds = {f.name: f.type for f in dataclasses.fields(kind)}
        stored, known = set(document["fields"]), set(kinds)
        if stored != known:
            differing = ", ".join(sorted(stored ^ known))
            raise VesaliusError(
                f"'{folder}' was saved by another version; its {kind.__name__} differs in {differing}"
            )
        values = {name: _attach(value, tensors) for name, value in document["fields"].items()}
        return kind(**{name: _typed(value, kinds[name]) for name, value in values.items()})


def _fields(result: Result) -> dict[str, Any]:
    return {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}


def _detach(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Replace every tensor in `value` by a reference into `tensors`."""
    if isinstance(value, Tensor):
        stored = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        tensors[name] = stored.detach().to("cpu", copy=True).contiguous()
        return {"$complex" if value.is_complex() else "$tensor": name}
    if isinstance(value, dict):
        return {str(key): _detach(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_detach(item, f"{name}/{number}", tensors) for number, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(
        f"field {name} of a result is a {type(value).__name__}; expected a tensor or a JSON value"
    )


def _attach(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$tensor"}:
            return tensors[value["$tensor"]]
        if set(value) == {"$complex"}:
            return torch.view_as_complex(tensors[value["$complex"]])
        return {key: _attach(item, tensors) for key, item in value.items()}
    return [_attach(item, tensors) for item in value] if isinstance(value, list) else value


def _typed(value: Any, kind: Any) -> Any:
    """JSON has no tuples: a field that is declared as one becomes one again."""
    wanted = kind if isinstance(kind, str) else getattr(typing.get_origin(kind) or kind, "__name__", "")
    return tuple(value) if isinstance(value, list) and wanted.startswith("tuple") else value


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _line(headline: Headline) -> str:
    def show(value: float | str | None) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    parts = [f"{headline.claim}: {show(headline.value)}"]
    if headline.interval is not None:
        parts.append(f"[{show(headline.interval[0])}, {show(headline.interval[1])}]")
    if headline.control is not None:
        parts.append(f"(control {show(headline.control)})")
    return " ".join([*parts, f"– {headline.verdict}", *([headline.note] if headline.note else [])])
