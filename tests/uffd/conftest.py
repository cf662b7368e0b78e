"""One laboratory per test; compiled once before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from softrnic.control import warm
from tests.uffd.lab import Lab, lab


@pytest.fixture
def bench() -> Iterator[Lab]:
    """A device on demand and its peers."""
    warm.prepare()
    with lab() as made:
        yield made
