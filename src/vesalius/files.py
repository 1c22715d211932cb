"""Files and folders that are whole or not there: written beside their place, and renamed into it at the end."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path of the same name, in a hidden folder next to `path`, to write a file or a folder at.

    It takes the place of `path`, and of what was there, when the block ends; if the block raises it is removed.

    >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
    >>> with whole(target) as partial:
    ...     partial.write_text("1 2 3")
    5
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('1 2 3', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        partial = hidden / path.name
        yield partial
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
