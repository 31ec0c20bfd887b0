"""Which values of a parameter each run of the tests tries, and which only `make test-all` does."""

from collections.abc import Iterable
from typing import Any

import pytest


def thorough_but_for(kept: Any, values: Iterable[Any]) -> list[Any]:
    """Returns the values for `parametrize`, all marked `thorough` but for the one that shows the subject."""
    values = list(values)
    assert kept in values, f"{kept!r} is none of {values}"
    return [value if value == kept else pytest.param(value, marks=pytest.mark.thorough) for value in values]
