"""The address of an activation.

    PATH[:PORT][#CALL][INDEX]      transformer.h.0.attn:pattern     features.3:out#1[12]
    ROLE@LAYER[INDEX]              pattern@1[4]    resid_post@*     z@0-3    logits

PATH is the dotted name of any module (empty for the whole network). PORT is its `in` or `out`, or inside
attention `q k v pattern z`. CALL counts from 0 when one module runs several times in a forward. ROLE names a
part of a known architecture; LAYER is a number, a range `0-3`, a list `0,2` or `*`. INDEX picks heads (of an
attention port), channels (of an image) or units: `[3]`, `[0:4]`, `[1,5]`.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from vesalius.errors import VesaliusError, nearest

ATTENTION_PORTS = ("q", "k", "v", "pattern", "z")
PORTS = ("in", "out", *ATTENTION_PORTS)
LAYERED_ROLES = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    *ATTENTION_PORTS,
    "neurons",
    "maps",
    "maps_pre",
)
GLOBAL_ROLES = ("embed", "logits")
ROLES = (*LAYERED_ROLES, *GLOBAL_ROLES)

_GRAMMAR = re.compile(
    r"(?P<name>[^@:#\[\]\s]*)"
    r"(?:@(?P<layers>\*|[\d,\-]+))?"
    r"(?::(?P<port>\w+))?"
    r"(?:#(?P<call>\d+))?"
    r"(?:\[(?P<index>[^\]]*)\])?",
    re.ASCII,
)
_FORM = "PATH[:PORT][#CALL][INDEX] or ROLE@LAYER[INDEX]"

Index = int | slice | tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """Where an activation is: `path` and `port` for any module, or `role` and `layers` for a known one."""

    path: str = ""
    port: str = "out"
    call: int | None = None
    role: str | None = None
    layers: str | None = None
    index: Index | None = None

    @classmethod
    def parse(cls, text: "str | Site") -> "Site":
        """Read an address.

        >>> Site.parse("pattern@1[4]")
        Site(path='', port='out', call=None, role='pattern', layers='1', index=4)
        >>> str(Site.parse("transformer.h.0.attn:z[0:2]"))
        'transformer.h.0.attn:z[0:2]'

        Raises VesaliusError naming the part that is wrong and the nearest valid one.
        """
        return text if isinstance(text, Site) else _parsed(text)

    @classmethod
    def _read(cls, text: str) -> "Site":
        match = _GRAMMAR.fullmatch(text.strip())
        if match is None:
            raise VesaliusError(f"'{text}' is not a site; expected {_FORM}")
        name, layers, port = match["name"], match["layers"], match["port"]
        call = None if match["call"] is None else int(match["call"])
        index = _parse_index(match["index"], text)
        if layers is not None or (name in ROLES and port is None):
            return cls._parse_role(name, layers, port, call, index, text)
        if port is not None and port not in PORTS:
            raise VesaliusError(
                f"'{port}' in site '{text}' is not a port; expected one of {', '.join(PORTS)}"
            )
        return cls(path=name, port=port or "out", call=call, index=index)

    @classmethod
    def _parse_role(cls, role, layers, port, call, index, text) -> "Site":
        if role not in ROLES:
            raise VesaliusError(
                f"'{role}' in site '{text}' is not a role; expected one of {', '.join(ROLES)}{nearest(role, ROLES)}"
            )
        if port is not None or call is not None:
            raise VesaliusError(
                f"site '{text}' names a role, which takes no :PORT and no #CALL; expected ROLE@LAYER"
            )
        if (role in GLOBAL_ROLES) != (layers is None):
            want = f"'{role}' alone" if role in GLOBAL_ROLES else f"a layer, as in '{role}@0' or '{role}@*'"
            raise VesaliusError(f"site '{text}' is incomplete; expected {want}")
        if layers is not None and not re.fullmatch(r"\*|\d+(-\d+)?(,\d+(-\d+)?)*", layers):
            raise VesaliusError(
                f"'{layers}' in site '{text}' is not a layer; expected a number, 0-3, 0,2 or *"
            )
        return cls(role=role, layers=layers, index=index)

    def __str__(self) -> str:
        index = "" if self.index is None else f"[{_print_index(self.index)}]"
        if self.role is not None:
            return self.role + ("" if self.layers is None else f"@{self.layers}") + index
        port = f":{self.port}" if self.port != "out" or self.path in ROLES or not self.path else ""
        return self.path + port + ("" if self.call is None else f"#{self.call}") + index

    def __hash__(self) -> int:
        return hash(str(self))

    def layer_numbers(self, n_layers: int) -> list[int]:
        """The layers this role address names in a network of `n_layers`, in order.

        >>> Site.parse("z@0,2-3").layer_numbers(4)
        [0, 2, 3]
        """
        assert self.layers is not None
        if self.layers == "*":
            return list(range(n_layers))
        numbers: list[int] = []
        for part in self.layers.split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
        beyond = [n for n in numbers if n >= n_layers]
        if beyond or not numbers:
            raise VesaliusError(
                f"site '{self}' names layer {beyond[0] if beyond else self.layers}, "
                f"but the model has layers 0 to {n_layers - 1}"
            )
        return numbers

    def whole(self) -> "Site":
        """The same address without its index."""
        return replace(self, index=None)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Site:
    return Site._read(text)


def _parse_index(text: str | None, site: str) -> Index | None:
    if text is None:
        return None
    compact = text.replace(" ", "")
    if re.fullmatch(r"\d+", compact):
        return int(compact)
    if re.fullmatch(r"\d*:\d*", compact):
        start, stop = compact.split(":")
        return slice(int(start) if start else None, int(stop) if stop else None)
    if re.fullmatch(r"\d+(,\d+)+", compact):
        return tuple(int(part) for part in compact.split(","))
    raise VesaliusError(f"index '[{text}]' in site '{site}' is not [3], [0:4] or [1,5]")


def _print_index(index: Index) -> str:
    if isinstance(index, slice):
        return f"{'' if index.start is None else index.start}:{'' if index.stop is None else index.stop}"
    return ",".join(map(str, index)) if isinstance(index, tuple) else str(index)
