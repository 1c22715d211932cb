"""Reading and editing the activations of any network, where they are: the only file that hooks.

Two taps reach everything. Module hooks give every module's `in` and `out`. Inside attention, a function mode that
is on only while the tapped module runs sees `scaled_dot_product_attention`, or the matmul–softmax–matmul of eager
attention, and so gives `q k v pattern z` in any model without a line of per-model code. The network is neither
wrapped nor rewritten: what it returns while it is recorded is bit-identical to what it returns alone.

Several `record` and `intervene` blocks may be open on one network. Edits of one site compose, the outermost first;
a recording sees the value after every edit, which is the value that flows on.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vesalius.architectures import Architecture, architecture_of
from vesalius.attention import AttentionMode
from vesalius.errors import VesaliusError, nearest
from vesalius.site import ATTENTION_PORTS, GLOBAL_ROLES, Index, Site

Edit = Callable[[Tensor], Tensor]


@runtime_checkable
class Opened(Protocol):
    """What `record` and `intervene` need of a model."""

    module: nn.Module
    architecture: Architecture | None


class Stopped(Exception):
    """Ends a forward at the last recorded site. Models return None for it; `record(stop=True)` swallows it."""


class Recording(Mapping[str, Tensor]):
    """What was recorded, by canonical address: `acts["pattern@1"]`, `acts["pattern@1[4]"]`.

    `runs` holds one dictionary for each forward; reading by address needs exactly one forward.
    """

    def __init__(self, names: "_Names") -> None:
        self.runs: list[dict[str, Tensor]] = []
        self._names = names

    def __getitem__(self, key: str | Site) -> Tensor:
        run, site = self._only_run(), Site.parse(key)
        if str(site) in run:
            return run[str(site)]
        if str(site.whole()) in run:
            return take(run[str(site.whole())], site)
        raise VesaliusError(
            f"'{key}' was not recorded; recorded were {', '.join(run)}{nearest(str(key), run)}"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._only_run())

    def __len__(self) -> int:
        return len(self._only_run())

    def stack(self, site: str | Site) -> Tensor:
        """All the layers a role address names, stacked along a new first axis."""
        return torch.stack([self[target.label] for target in self._names.targets(site)])

    def _only_run(self) -> dict[str, Tensor]:
        if len(self.runs) != 1:
            raise VesaliusError(
                f"{len(self.runs)} forwards ran inside record; to read by address expected one, "
                "else use .runs[i][address]"
            )
        return self.runs[0]


@contextmanager
def record(
    model: Opened | nn.Module,
    sites: str | Site | Iterable[str | Site],
    *,
    stop: bool = False,
    gradients: bool = False,
) -> Iterator[Recording]:
    """Record the activations at `sites` of every forward of `model` within the block.

    With `stop` the forward ends at the last recorded site (a `Model` call then returns None). Values are detached
    copies; with `gradients` they are part of the graph, so that `torch.autograd.grad(loss, acts[site])` works.

    >>> from vesalius.testbed import random_attn
    >>> model = random_attn(n_layers=1, seed=0)
    >>> with record(model, "pattern@0") as acts:
    ...     _ = model(torch.tensor([[1, 2, 3]]))
    >>> acts["pattern@0"].shape
    torch.Size([1, 4, 3, 3])

    Raises VesaliusError for an unknown site, a site that never fired, or a module that ran twice in one forward
    and was addressed without `#CALL`.
    """
    names = _Names(model)
    targets = [
        target
        for site in ([sites] if isinstance(sites, str | Site) else sites)
        for target in names.targets(site)
    ]
    acts = Recording(names)
    copies: dict[int, tuple[ref, int, Tensor]] = {}

    def begin() -> None:
        acts.runs.append({})
        copies.clear()

    def reader(target: _Target) -> Edit:
        label, address = target.label, target.address

        def read(value: Tensor) -> Tensor:
            if not acts.runs:
                begin()
            run = acts.runs[-1]
            if label in run:
                raise VesaliusError(
                    f"'{address.path}' runs several times in one forward; "
                    f"name the call, as in '{replace(address, call=0, index=None)}'"
                )
            kept = take(value, address)
            run[label] = kept if gradients else _copied(kept, copies)
            if stop and len(run) == len(targets):
                raise Stopped
            return value.clone() if gradients else value

        return read

    with _open(names.root, [(target, reader(target)) for target in targets], "readers", begin):
        try:
            yield acts
        except Stopped:
            if not stop:
                raise
    _demand(targets, {label for run in acts.runs for label in run})


@contextmanager
def intervene(
    model: Opened | nn.Module, edits: Mapping[str, Edit] | Mapping[Site, Edit], *, resize: bool = False
) -> Iterator[None]:
    """Apply each edit to the value at its site in every forward of `model` within the block.

    An edit is a function `Tensor -> Tensor`. At an indexed site (`z@0[3]`) it sees, and replaces, that part alone.
    It must keep the shape, unless `resize` allows it to change batch size or length.

    Raises VesaliusError for an unknown site, a site that never fired, or an edit that changes shape or dtype.
    """
    names = _Names(model)
    targets = [(target, edit) for site, edit in edits.items() for target in names.targets(site)]
    fired: set[str] = set()

    def editor(target: _Target, edit: Edit) -> Edit:
        def apply(value: Tensor) -> Tensor:
            fired.add(target.label)
            old = take(value, target.address)
            new = edit(old)
            if (
                not isinstance(new, Tensor)
                or (new.shape != old.shape and not resize)
                or new.dtype != old.dtype
            ):
                given = f"{tuple(new.shape)} {new.dtype}" if isinstance(new, Tensor) else type(new).__name__
                raise VesaliusError(
                    f"the edit at '{target.label}' returned {given}; expected {tuple(old.shape)} {old.dtype}"
                )
            return new if target.address.index is None else _put(value, target.address, new)

        return apply

    with _open(
        names.root, [(target, editor(target, edit)) for target, edit in targets], "edits", lambda: None
    ):
        yield
    _demand([target for target, _ in targets], fired)


def take(value: Tensor, site: Site) -> Tensor:
    """The part of `value` that the site's index names: heads or image channels on axis 1, units on the last axis."""
    if site.index is None:
        return value
    axis = _axis(value, site)
    return value.select(axis, site.index) if isinstance(site.index, int) else value[_slices(axis, site.index)]


def sites_of(model: Opened | nn.Module, site: str | Site) -> list[Site]:
    """Every single address that a site names: one for each layer of a role, itself for a path."""
    return [Site.parse(target.label) for target in _Names(model).targets(site)]


# ---------------------------------------------------------------------------------------------- from site to module


class _Target(NamedTuple):
    """One single address: what it is called, where it is, and the module there."""

    label: str
    address: Site
    module: nn.Module


class _Names:
    """What addresses mean in one network."""

    def __init__(self, model: Opened | nn.Module) -> None:
        bare = isinstance(model, nn.Module)
        self.root = model if bare else model.module
        self.architecture = architecture_of(model) if bare else model.architecture

    @cached_property
    def layers(self) -> tuple[str, ...]:
        assert self.architecture is not None
        return self.architecture.layer_names(self.root)

    def targets(self, text: str | Site) -> list[_Target]:
        """The single addresses a site names."""
        site = Site.parse(text)
        if site.role is None:
            return [_Target(str(site), site, self._module(site))]
        if self.architecture is None:
            raise VesaliusError(
                f"site '{site}' names a role, but {type(self.root).__name__} is not a known architecture; "
                "expected PATH[:PORT]"
            )
        known = self.architecture.sites
        if site.role not in known:
            raise VesaliusError(
                f"{self.architecture.name} has no '{site.role}'; it has {', '.join(known)}{nearest(site.role, known)}"
            )
        template = known[site.role]
        if site.role in GLOBAL_ROLES:
            return [self._target(site, template)]
        return [
            self._target(replace(site, layers=str(layer)), template.format(self.layers[layer]))
            for layer in site.layer_numbers(len(self.layers))
        ]

    def _target(self, label: Site, place: str) -> _Target:
        address = Site.parse(place)
        if label.index is not None:
            address = replace(address, index=label.index)
        return _Target(str(label), address, self._module(address))

    def _module(self, site: Site) -> nn.Module:
        try:
            return self.root.get_submodule(site.path)
        except AttributeError:
            paths = [path for path, _ in self.root.named_modules()]
            raise VesaliusError(
                f"site '{site}' names no module of {type(self.root).__name__}{nearest(site.path, paths)}"
            ) from None


def _demand(targets: Iterable[_Target], fired: set[str]) -> None:
    """Raise if a site was asked for and never seen: silence would be a wrong answer."""
    for label, address, module in targets:
        if label not in fired:
            where = f"'{address.path or 'the whole network'}' ({type(module).__name__})"
            inside = address.port in ATTENTION_PORTS
            why = f"no attention was computed in {where}" if inside else f"module {where} did not run"
            raise VesaliusError(
                f"site '{label}' never fired: {why}{' that many times' if address.call else ''}"
            )


# --------------------------------------------------------------------------------------------------- parts of values


def _axis(value: Tensor, site: Site) -> int:
    axis = 1 if site.port in ATTENTION_PORTS or value.dim() == 4 else value.dim() - 1
    largest = (
        site.index if isinstance(site.index, int) else max(site.index) if isinstance(site.index, tuple) else 0
    )
    if largest >= value.shape[axis]:
        raise VesaliusError(
            f"index {largest} of site '{site}' is out of range; expected 0 to {value.shape[axis] - 1}"
        )
    return axis


def _slices(axis: int, index: Index) -> tuple:
    return (*[slice(None)] * axis, list(index) if isinstance(index, tuple) else index)


def _put(value: Tensor, site: Site, part: Tensor) -> Tensor:
    assert site.index is not None
    value = value.clone()
    value[_slices(_axis(value, site), site.index)] = part
    return value


def _copied(value: Tensor, copies: dict[int, tuple[ref, int, Tensor]]) -> Tensor:
    """A detached copy, shared between sites that are one and the same tensor (resid_post and the next resid_pre)."""
    if value.is_inference():
        return value.clone()
    known = copies.get(id(value))
    if known is not None and known[0]() is value and known[1] == value._version:
        return known[2]
    made = value.detach().clone()
    copies[id(value)] = (ref(value), value._version, made)
    return made


def _first_tensor(values: Iterable[tuple[Any, Any]]) -> Any:
    return next((key for key, value in values if isinstance(value, Tensor)), None)


def _replaced(container: Any, key: Any, value: Tensor) -> Any:
    """`container` (a tensor, tuple, list, dictionary or model output) with one tensor exchanged."""
    if isinstance(container, Tensor):
        return value
    if isinstance(container, tuple):
        items = [value if position == key else item for position, item in enumerate(container)]
        return tuple(items) if type(container) is tuple else type(container)(*items)
    container = copy.copy(container)
    container[key] = value
    return container


# ------------------------------------------------------------------------------------------------------------- taps


class _Tap:
    """What is open on one module: for each port the edits, then the readers, and how often it has fired."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.edits: dict[str, list[tuple[int | None, Edit]]] = {}
        self.readers: dict[str, list[tuple[int | None, Edit]]] = {}
        self.fired: dict[str, int] = {}
        self.modes: list[AttentionMode] = []
        self.handles: dict[str, RemovableHandle] = {}

    def open(self, port: str, kind: str, entry: tuple[int | None, Edit]) -> None:
        getattr(self, kind).setdefault(port, []).append(entry)
        if port == "out":
            self._hook("out", lambda: self.module.register_forward_hook(self.after))
            return
        self._hook("in", lambda: self.module.register_forward_pre_hook(self.before, with_kwargs=True))
        if port != "in":
            self._hook("leave", lambda: self.module.register_forward_hook(self.leave, always_call=True))

    def close(self, port: str, kind: str, entry: tuple[int | None, Edit]) -> None:
        entries = getattr(self, kind)[port]
        entries[:] = [other for other in entries if other is not entry]
        if not entries:
            del getattr(self, kind)[port]
        if not self.edits and not self.readers:
            for handle in self.handles.values():
                handle.remove()
            _taps.pop(self.module, None)

    def is_open(self, port: str) -> bool:
        return port in self.edits or port in self.readers

    def _hook(self, name: str, register: Callable[[], RemovableHandle]) -> None:
        if name not in self.handles:
            self.handles[name] = register()

    def apply(self, port: str, value: Tensor) -> Tensor:
        """Run the operations open at `port`; returns the very same tensor if none of them changed it."""
        call = self.fired.get(port, 0)
        self.fired[port] = call + 1
        for operations in (self.edits, self.readers):
            for wanted, operation in operations.get(port, ()):
                if wanted is None or wanted == call:
                    value = operation(value)
        return value

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if "leave" in self.handles:
            self.modes.append(AttentionMode(self.is_open, self.apply))
            self.modes[-1].__enter__()
        if not self.is_open("in"):
            return None
        position, name = _first_tensor(enumerate(args)), _first_tensor(kwargs.items())
        if position is not None:
            value = self.apply("in", args[position])
            return None if value is args[position] else (_replaced(args, position, value), kwargs)
        if name is None:
            return None
        value = self.apply("in", kwargs[name])
        return None if value is kwargs[name] else (args, _replaced(kwargs, name, value))

    def after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, Tensor):
            return self.apply("out", output)
        key = _first_tensor(output.items() if isinstance(output, Mapping) else enumerate(output))
        if key is None:
            return None
        value = self.apply("out", output[key])
        return None if value is output[key] else _replaced(output, key, value)

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.modes:
            self.modes.pop().__exit__(None, None, None)


_taps: WeakKeyDictionary[nn.Module, _Tap] = WeakKeyDictionary()


@contextmanager
def _open(
    root: nn.Module, operations: list[tuple[_Target, Edit]], kind: str, begin: Callable[[], None]
) -> Iterator[None]:
    """Keep operations open at their targets; a forward of `root` begins a new run and counts calls from 0.

    The last operation to close on a module takes its hooks away.
    """
    opened: list[tuple[_Tap, str, tuple[int | None, Edit]]] = []

    def start(module: nn.Module, args: tuple) -> None:
        begin()
        for tap, _, _ in opened:
            tap.fired.clear()

    handle = root.register_forward_pre_hook(start, prepend=True)
    try:
        for (_, address, module), operation in operations:
            tap = _taps.get(module)
            if tap is None:
                tap = _taps[module] = _Tap(module)
            entry = (address.call, operation)
            tap.open(address.port, kind, entry)
            opened.append((tap, address.port, entry))
        yield
    finally:
        handle.remove()
        for tap, port, entry in opened:
            tap.close(port, kind, entry)
