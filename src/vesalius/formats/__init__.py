"""Readers of model files, one per format. Each gives `Parts`; none executes anything a file says."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from vesalius.preprocessing import Preprocessing

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Parts:
    """What a reader hands to `load`: the module and a name; how texts become tokens, or pictures an input."""

    module: nn.Module
    tokenizer: "Tokenizer | None"
    bos: int | None
    name: str
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
