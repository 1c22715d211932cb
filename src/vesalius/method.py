"""`@method`: one analysis, one function, whose signature is its schema.

The library call, the command line, the web form and the contract tests are all derived from the signature, so it
is checked when the method is defined: the model first, everything else keyword-only, typed and with a default.
"""

import functools
import importlib
import inspect
import pkgutil
import platform
import re
import time
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vesalius.dictionaries import Dictionary, Feature, SparseDictionary
from vesalius.errors import VesaliusError, nearest
from vesalius.model import Model
from vesalius.result import Result

T = typing.TypeVar("T")

SUBJECTS = {
    "": "nothing more",
    "feature": "one feature, as in 'mixed3b[379]'",
    "dictionary": "one dictionary, or the file that it is in",
}

Watcher = Callable[[str, int, int | None], None]
"""Told `(what, done, total)` while a method runs."""

_watcher: ContextVar[Watcher | None] = ContextVar("progress", default=None)


@dataclass(frozen=True)
class Method:
    """A registered analysis: its name, its function, what a model must have, and the room it lives in."""

    name: str
    function: Callable[..., Result]
    needs: frozenset[str]
    room: str

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The keyword parameters, with evaluated annotations."""
        hints = typing.get_type_hints(inspect.unwrap(self.function))
        named = _keywords(inspect.unwrap(self.function))
        return {p.name: p.replace(annotation=hints[p.name]) for p in named}

    @property
    def subject(self) -> str:
        """What it is asked about besides the model, its second argument: `feature`, `dictionary` or nothing."""
        return _subject(inspect.unwrap(self.function))

    @property
    def headline(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def missing(self, model: Model) -> frozenset[str]:
        """What this method needs and `model` does not have; empty if the method fits."""
        return self.needs - model.kinds


_registry: dict[str, Method] = {}


def method(*, needs: Iterable[str] = ()) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Register an analysis. `needs` names the capabilities a model must have (see `Model.kinds`).

    Its function reads `(model, *, …)`, or `(model, feature, *, …)` and `(model, dictionary, *, …)` if it is about one
    feature or one dictionary, which a caller may name by its address or its path. Calling the registered function
    opens what was named, runs it without gradients unless the method asks for them itself, and returns its result
    with `provenance` filled in.
    """
    needed = frozenset(needs)

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        name = function.__name__
        _check_signature(function)
        subject = _subject(function)

        @functools.wraps(function)
        def run(model: Any, *about: Feature | Dictionary | str | Path, **parameters: Any) -> Result:
            if not isinstance(model, Model):
                raise VesaliusError(
                    f"{name} was given a {type(model).__name__}; expected a Model, as vs.load or vs.Model give"
                )
            missing = needed - model.kinds
            if missing == {"images"} and "tokens" not in model.kinds:
                _ = model.pictures  # says what to give
            if missing:
                raise VesaliusError(
                    f"{name} needs a model with {', '.join(sorted(missing))}; "
                    f"{model.name} has {', '.join(sorted(model.kinds))}"
                )
            if subject in parameters:
                about = (*about, parameters.pop(subject))
            if len(about) != bool(subject):
                raise VesaliusError(
                    f"{name} was given {len(about)} arguments after the model; expected {SUBJECTS[subject]}"
                )
            _check_names(name, parameters, function)
            subjects = [getattr(model, subject)(one) for one in about]
            started = time.perf_counter()
            with torch.no_grad():
                result = function(model, *subjects, **parameters)
            seconds = time.perf_counter() - started
            return replace(
                result, provenance=_provenance(name, function, subjects, parameters, model, seconds)
            )

        _registry[name] = Method(name, run, needed, room=function.__module__.split(".")[-2:][0])
        return run

    return decorate


def methods() -> dict[str, Method]:
    """Every analysis by name, in the order of the rooms' lists."""
    package = importlib.import_module("vesalius.methods")
    for module in pkgutil.walk_packages(package.__path__, "vesalius.methods."):
        importlib.import_module(module.name)
    return dict(sorted(_registry.items()))


def progress(items: Iterable[T], what: str) -> Iterator[T]:
    """Iterate `items`, telling whoever watches how far the work is."""
    total = len(items) if isinstance(items, typing.Sized) else None
    tell = _watcher.get()
    for done, item in enumerate(items):
        if tell is not None:
            tell(what, done, total)
        yield item
    if tell is not None and total is not None:
        tell(what, total, total)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Within this block, `watcher` is told of the progress of methods."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def _subject(function: Callable[..., Result]) -> str:
    second = list(inspect.signature(function).parameters)[1:2]
    return second[0] if second and second[0] in SUBJECTS else ""


def _keywords(function: Callable[..., Result]) -> list[inspect.Parameter]:
    """All parameters but the model and what is asked about."""
    return list(inspect.signature(function).parameters.values())[1 + bool(_subject(function)) :]


def _check_signature(function: Callable[..., Result]) -> None:
    first, rest = next(iter(inspect.signature(function).parameters.values())), _keywords(function)
    loose = [
        p.name
        for p in rest
        if p.kind is not p.KEYWORD_ONLY or p.default is p.empty or p.annotation is p.empty
    ]
    if first.name != "model" or loose or not inspect.getdoc(function):
        raise TypeError(
            f"method {function.__name__} must read (model, [feature or dictionary,] *, name: type = default, …) "
            "with a docstring" + (f"; not so: {', '.join(loose)}" if loose else "")
        )


def _check_names(name: str, parameters: dict[str, Any], function: Callable[..., Result]) -> None:
    known = [parameter.name for parameter in _keywords(function)]
    for given in parameters:
        if given not in known:
            raise VesaliusError(
                f"{name} has no parameter '{given}'; expected {', '.join(known)}{nearest(given, known)}"
            )


def _provenance(
    name: str,
    function: Callable[..., Result],
    subjects: list[Feature | Dictionary],
    parameters: dict[str, Any],
    model: Model,
    seconds: float,
) -> dict:
    defaults = {p.name: p.default for p in _keywords(function)}
    return {
        "method": name,
        **_named(_subject(function), subjects),
        "parameters": {key: _printable(value) for key, value in {**defaults, **parameters}.items()},
        "model": model.name,
        "model_hash": model.hash,
        "architecture": model.architecture.name if model.architecture else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "versions": {
            "vesalius": _version("vesalius"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 3),
    }


def _named(subject: str, given: list[Feature | Dictionary]) -> dict[str, str]:
    """What the analysis was asked about, and of a dictionary the hash of its numbers."""
    if not given:
        return {}
    only = given[0]
    hashed = {"dictionary_hash": only.hash} if isinstance(only, SparseDictionary) else {}
    return {subject: str(only)} | hashed


def _printable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, torch.Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "uninstalled"
