"""What `make test` leaves to `make test-long`: the full product of what it tests a part of.

@pytest.mark.parametrize("seeds", [range(4), long(range(4, 16))])
@pytest.mark.parametrize("name", only(NAMES, quick=["llama", "bloom"]))
"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

LONG = pytest.mark.long


def long(value: Any) -> Any:
    """A parameter that only `make test-long` has."""
    return pytest.param(value, marks=LONG)


def only(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Parameters of which `make test` has those in `quick`, and `make test-long` the others."""
    parameters = list(values)
    assert set(quick) <= set(parameters)
    return [value if value in quick else long(value) for value in parameters]
