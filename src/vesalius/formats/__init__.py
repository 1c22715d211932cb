"""Readers of model files, one per format. Each gives `Parts`; none executes anything a file says."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Parts:
    """What a reader hands to `load`: the module, its tokenizer, the token that begins texts, and a name."""

    module: nn.Module
    tokenizer: "Tokenizer | None"
    bos: int | None
    name: str
