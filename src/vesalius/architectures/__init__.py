"""Architectures as data: where each role of a network lives, and how its weights are laid out.

An `Architecture` is right when its equations hold (`equations.py`), so adding a family is adding its table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from torch import Tensor, nn

FAMILIES = (
    "toy_family",
    "gpt2",
    "neox",
    "opt",
    "llama",
    "gemma",
    "olmo2",
    "phi",
    "bert",
    "vit",
    "othello_gpt",
    "convnets",
)

Reader = Callable[[Any, int], Tensor]
"""`(module, layer) -> weight` for row vectors: W_Q is [head, d_model, d_head], W_U is [d_model, d_vocab]."""

Positions = Literal["residual", "shortformer", "rotary", "none"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a network, 0 where it has no such part: `d_mlp` without an MLP, all but the layers and the classes
    of a convnet. `d_vocab` is the classes of a classifier."""

    n_layers: int
    d_model: int = 0
    n_heads: int = 0
    n_kv_heads: int = 0
    d_head: int = 0
    d_mlp: int = 0
    d_vocab: int = 0
    n_ctx: int = 0


@dataclass(frozen=True)
class Architecture:
    """One family: role → address, weight role → reader, and the few facts the equations need."""

    name: str
    modules: tuple[str, ...]
    """Class names of the root modules this table describes."""
    sites: Mapping[str, str]
    """Role → address; `{}` stands for the layer."""
    weights: Mapping[str, Reader]
    shape: Callable[[Any], Shape]
    residual: Literal["sequential", "parallel", "post_norm"] = "sequential"
    norm: Literal["layer", "rms", "none"] = "layer"
    positions: Positions = "residual"
    causal: bool = True
    inputs: Literal["tokens", "image", "features"] = "tokens"
    gain_offset: float = 0.0
    """What the norms add to their stored weight to get the gain: 1 in Gemma, else 0."""
    activation: str = ""
    """Address of the MLP's nonlinearity, empty without an MLP."""
    layers: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    """Names of the layers in order where they are not numbers: `{}` in `sites` then stands for the name."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Short names of layers in the literature → the layer: `3b` → `mixed3b`."""
    default_site: str = ""
    """An early-middle layer: where methods that ask for a site look if they are told none."""
    matches: Callable[[Any], bool] = lambda module: True
    """Whether an instance of these modules is of this family: one class can hold several."""

    def layer_names(self, module: Any) -> tuple[str, ...]:
        """What `{}` in `sites` stands for, layer by layer: the numbers of a transformer's layers, a convnet's names."""
        named = self.layers(module) if callable(self.layers) else self.layers
        return named or tuple(map(str, range(self.shape(module).n_layers)))


_registry: dict[str, Architecture] = {}


def register(architecture: Architecture) -> Architecture:
    """Add a family under its name; its root classes become known to `architecture_of`."""
    if architecture.name in _registry:
        raise ValueError(f"The architecture {architecture.name} is registered twice.")
    _registry[architecture.name] = architecture
    return architecture


def registered() -> list[Architecture]:
    """Every known family, each once, in the order of registration."""
    for family in FAMILIES:
        import_module(f"vesalius.architectures.{family}")
    return list(_registry.values())


def architecture_of(module: nn.Module) -> Architecture | None:
    """The family of a root module by its class name (or that of a parent class), or None."""
    names = {cls.__name__ for cls in type(module).__mro__}
    known = (family for family in registered() if names & set(family.modules))
    return next((family for family in known if family.matches(module)), None)
