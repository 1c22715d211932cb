"""A tokenizer from its `tokenizer.json`."""

from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.errors import VesaliusError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(file: Path) -> "Tokenizer":
    """The tokenizer of a file. Raises VesaliusError if the file is damaged."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 (tokenizers raises nothing narrower)
        raise VesaliusError(f"{file} is not a tokenizer: {error}") from None
