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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from vesalius.architectures import Architecture, architecture_of
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

    def __init__(self, root: nn.Module, architecture: Architecture | None) -> None:
        self.runs: list[dict[str, Tensor]] = []
        self._root, self._architecture = root, architecture

    def __getitem__(self, key: str | Site) -> Tensor:
        run, site = self._only_run(), Site.parse(key)
        if str(site) in run:
            return run[str(site)]
        if str(site.whole()) in run:
            return take(run[str(site.whole())], site)
        raise VesaliusError(f"'{key}' was not recorded; recorded were {', '.join(run)}{nearest(str(key), run)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._only_run())

    def __len__(self) -> int:
        return len(self._only_run())

    def stack(self, site: str | Site) -> Tensor:
        """All the layers a role address names, stacked along a new first axis."""
        return torch.stack([self[str(label)] for label, _ in _resolve(self._root, self._architecture, Site.parse(site))])

    def _only_run(self) -> dict[str, Tensor]:
        if len(self.runs) != 1:
            raise VesaliusError(
                f"{len(self.runs)} forwards ran inside record; to read by address expected one, else use .runs[i][address]"
            )
        return self.runs[0]


@contextmanager
def record(
    model: Opened | nn.Module, sites: str | Site | Iterable[str | Site], *, stop: bool = False, gradients: bool = False
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
    root, architecture = _open(model)
    wanted = [sites] if isinstance(sites, str | Site) else list(sites)
    targets = [pair for site in wanted for pair in _resolve(root, architecture, Site.parse(site))]
    acts = Recording(root, architecture)
    copies: dict[int, tuple[ref, int, Tensor]] = {}

    def begin() -> None:
        acts.runs.append({})
        copies.clear()

    def reader(label: str, address: Site) -> Edit:
        def read(value: Tensor) -> Tensor:
            if not acts.runs:
                begin()
            run = acts.runs[-1]
            if label in run:
                raise VesaliusError(f"'{address.path}' runs several times in one forward; name the call, as in '{_with_call(address)}'")
            kept = take(value, address)
            run[label] = kept if gradients else _copied(kept, copies)
            if stop and len(run) == len(targets):
                raise Stopped
            return value.clone() if gradients else value

        return read

    with ExitStack() as stack:
        taps = [stack.enter_context(_tapped(root, address, reader(str(label), address), reads=True)) for label, address in targets]
        stack.enter_context(_at_start_of(root, begin, taps))
        try:
            yield acts
        except Stopped:
            if not stop:
                raise
    fired = {label for run in acts.runs for label in run}
    _demand([(label, address, str(label) in fired) for label, address in targets], root)


@contextmanager
def intervene(
    model: Opened | nn.Module, edits: Mapping[str, Edit] | Mapping[Site, Edit], *, resize: bool = False
) -> Iterator[None]:
    """Apply each edit to the value at its site in every forward of `model` within the block.

    An edit is a function `Tensor -> Tensor`. At an indexed site (`z@0[3]`) it sees, and replaces, that part alone.
    It must keep the shape, unless `resize` allows it to change batch size or length.

    Raises VesaliusError for an unknown site, a site that never fired, or an edit that changes shape or dtype.
    """
    root, architecture = _open(model)
    targets = [
        (label, address, edit)
        for site, edit in edits.items()
        for label, address in _resolve(root, architecture, Site.parse(site))
    ]
    fired: set[str] = set()

    def editor(label: str, address: Site, edit: Edit) -> Edit:
        def apply(value: Tensor) -> Tensor:
            fired.add(label)
            old = take(value, address)
            new = edit(old)
            if not isinstance(new, Tensor) or (new.shape != old.shape and not resize) or new.dtype != old.dtype:
                given = f"{tuple(new.shape)} {new.dtype}" if isinstance(new, Tensor) else type(new).__name__
                raise VesaliusError(f"the edit at '{label}' returned {given}; expected {tuple(old.shape)} {old.dtype}")
            return new if address.index is None else _put(value, address, new)

        return apply

    with ExitStack() as stack:
        taps = [
            stack.enter_context(_tapped(root, address, editor(str(label), address, edit), reads=False))
            for label, address, edit in targets
        ]
        stack.enter_context(_at_start_of(root, lambda: None, taps))
        yield
    _demand([(label, address, str(label) in fired) for label, address, _ in targets], root)


def take(value: Tensor, site: Site) -> Tensor:
    """The part of `value` that the site's index names: heads or image channels on axis 1, units on the last axis."""
    if site.index is None:
        return value
    axis = _axis(value, site)
    return value.select(axis, site.index) if isinstance(site.index, int) else value[_slices(axis, site.index)]


def sites_of(model: Opened | nn.Module, site: str | Site) -> list[Site]:
    """Every single address that a site names: one for each layer of a role, itself for a path."""
    root, architecture = _open(model)
    return [label for label, _ in _resolve(root, architecture, Site.parse(site))]


# ---------------------------------------------------------------------------------------------- from site to module


def _open(model: Opened | nn.Module) -> tuple[nn.Module, Architecture | None]:
    if isinstance(model, nn.Module):
        return model, architecture_of(model)
    return model.module, model.architecture


def _resolve(root: nn.Module, architecture: Architecture | None, site: Site) -> list[tuple[Site, Site]]:
    """The single addresses a site names, each as (what it is called, where it is)."""
    if site.role is None:
        _module_at(root, site)
        return [(site, site)]
    if architecture is None:
        raise VesaliusError(
            f"site '{site}' names a role, but {type(root).__name__} is not a known architecture; expected PATH[:PORT]"
        )
    template = architecture.sites.get(site.role)
    if template is None:
        raise VesaliusError(
            f"{architecture.name} has no '{site.role}'; it has {', '.join(architecture.sites)}{nearest(site.role, architecture.sites)}"
        )
    if site.role in GLOBAL_ROLES:
        pairs = [(site, Site.parse(template))]
    else:
        numbers = site.layer_numbers(architecture.shape(root).n_layers)
        pairs = [(replace(site, layers=str(n)), Site.parse(template.format(n))) for n in numbers]
    return [(label, replace(address, index=site.index)) for label, address in pairs]


def _module_at(root: nn.Module, site: Site) -> nn.Module:
    try:
        return root.get_submodule(site.path)
    except AttributeError:
        paths = [path for path, _ in root.named_modules()]
        raise VesaliusError(f"site '{site}' names no module of {type(root).__name__}{nearest(site.path, paths)}") from None


def _with_call(site: Site) -> Site:
    return replace(site, call=0, index=None)


def _demand(fired: list[tuple[Site, Site, bool]], root: nn.Module) -> None:
    """Raise if a site was asked for and never seen: silence would be a wrong answer."""
    for label, address, seen in fired:
        if not seen:
            where = type(_module_at(root, address)).__name__
            why = (
                f"no attention was computed in '{address.path}' ({where})"
                if address.port in ATTENTION_PORTS
                else f"module '{address.path or 'the whole network'}' ({where}) did not run"
            )
            raise VesaliusError(f"site '{label}' never fired: {why}{' that many times' if address.call else ''}")


# --------------------------------------------------------------------------------------------------- parts of values


def _axis(value: Tensor, site: Site) -> int:
    axis = 1 if site.port in ATTENTION_PORTS or value.dim() == 4 else value.dim() - 1
    largest = site.index if isinstance(site.index, int) else max(site.index) if isinstance(site.index, tuple) else 0
    if largest >= value.shape[axis]:
        raise VesaliusError(f"index {largest} of site '{site}' is out of range; expected 0 to {value.shape[axis] - 1}")
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
        self.edits: dict[str, list[tuple[int | None, Edit]]] = {}
        self.readers: dict[str, list[tuple[int | None, Edit]]] = {}
        self.ports: frozenset[str] = frozenset()
        self.fired: dict[str, int] = {}
        self.modes: list[_AttentionMode] = []
        self.handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(self.before, with_kwargs=True),
            module.register_forward_hook(self.after),
            module.register_forward_hook(self.leave, always_call=True),
        ]

    def open(self, operations: list[tuple[int | None, Edit]], entry: tuple[int | None, Edit]) -> None:
        operations.append(entry)
        self.ports = self._open_ports()

    def close(self, operations: list[tuple[int | None, Edit]], entry: tuple[int | None, Edit]) -> None:
        operations[:] = [other for other in operations if other is not entry]
        self.ports = self._open_ports()

    def _open_ports(self) -> frozenset[str]:
        return frozenset(port for ports in (self.edits, self.readers) for port, open_there in ports.items() if open_there)

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
        if not self.ports.isdisjoint(ATTENTION_PORTS):
            self.modes.append(_AttentionMode(self))
            self.modes[-1].__enter__()
        if "in" not in self.ports:
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
        if "out" not in self.ports:
            return None
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
def _tapped(root: nn.Module, site: Site, operation: Edit, *, reads: bool) -> Iterator[_Tap]:
    """Keep `operation` open at a site; the last operation to close takes the module's hooks away."""
    module = _module_at(root, site)
    tap = _taps.get(module)
    if tap is None:
        tap = _taps[module] = _Tap(module)
    operations = (tap.readers if reads else tap.edits).setdefault(site.port, [])
    entry = (site.call, operation)
    tap.open(operations, entry)
    try:
        yield tap
    finally:
        tap.close(operations, entry)
        if not tap.ports:
            for handle in tap.handles:
                handle.remove()
            _taps.pop(module, None)


@contextmanager
def _at_start_of(root: nn.Module, begin: Callable[[], None], taps: list[_Tap]) -> Iterator[None]:
    """Within the block, a forward of `root` begins a new run and counts every tap's calls from 0."""

    def start(module: nn.Module, args: tuple) -> None:
        begin()
        for tap in taps:
            tap.fired.clear()

    handle = root.register_forward_pre_hook(start, prepend=True)
    try:
        yield
    finally:
        handle.remove()


# --------------------------------------------------------------------------------------------------- inside attention

_MATMULS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm}
_SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax}


class _AttentionMode(TorchFunctionMode):
    """On while a tapped attention module runs; recognises attention by the operations it is made of."""

    def __init__(self, tap: _Tap) -> None:
        super().__init__()
        self.tap = tap
        self.pattern: Tensor | None = None

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return self.fused(*args, **kwargs)
        if function in _MATMULS and len(args) == 2 and args[0].dim() == args[1].dim() == 4:
            return self.weighted(function, *args) if self.pattern is not None else self.scored(function, *args)
        result = function(*args, **kwargs)
        if function in _SOFTMAXES and result.dim() == 4:
            self.pattern = result = self.at("pattern", result)
        return result

    def at(self, port: str, value: Tensor) -> Tensor:
        return self.tap.apply(port, value) if port in self.tap.ports else value

    def fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`scaled_dot_product_attention`, its ports read and edited; the original kernel runs unless one changed."""
        heads = query.shape[1]
        every_key, every_value = _for_each_query_head(key, heads), _for_each_query_head(value, heads)
        q, k, v = self.at("q", query), self.at("k", every_key), self.at("v", every_value)
        if "pattern" in self.tap.ports:
            pattern = _attention_pattern(q, k, attn_mask, is_causal, scale)
            edited = self.at("pattern", pattern)
            if edited is not pattern:
                return self.at("z", edited.to(v.dtype) @ v)
        if k is not every_key or v is not every_value:
            key, value, enable_gqa = k, v, False
        return self.at("z", F.scaled_dot_product_attention(q, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa))

    def scored(self, function: Any, query: Tensor, key: Tensor) -> Tensor:
        k = key.transpose(-1, -2)
        edited = self.at("k", k)
        return function(self.at("q", query), key if edited is k else edited.transpose(-1, -2))

    def weighted(self, function: Any, pattern: Tensor, value: Tensor) -> Tensor:
        self.pattern = None
        return self.at("z", function(pattern, self.at("v", value)))


def _for_each_query_head(value: Tensor, heads: int) -> Tensor:
    return value if value.shape[1] == heads else value.repeat_interleave(heads // value.shape[1], dim=1)


def _attention_pattern(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype is not torch.bool:
        return (scores + mask).softmax(-1)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).masked_fill(~mask.any(-1, keepdim=True), 0.0)
