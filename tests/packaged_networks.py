"""Networks and photographs for the tests of real networks: what packages carry, and what a checkout may have."""

from pathlib import Path

import pytest

import vesalius as vs

PHOTOS = "shared/data/images/imagenet1000_256px.tar"


def network(name: str) -> vs.Model:
    """A published network, fetched once; the test is skipped where it cannot be had."""
    try:
        return vs.load(name, download=True)
    except vs.VesaliusError as error:
        pytest.skip(str(error))


def photographs() -> Path | None:
    """The photographs of ImageNet, which are their owners', if a folder around this one has them."""
    found = [parent / PHOTOS for parent in Path(__file__).parents if (parent / PHOTOS).is_file()]
    return found[0] if found else None
