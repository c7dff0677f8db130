"""What a test checks one by one."""

from collections.abc import Iterable
from typing import TypeVar

Thing = TypeVar("Thing")


def each(things: Iterable[Thing]) -> list[Thing]:
    """``things``, of which there must be some: whatever is asserted of each of none holds."""
    found = list(things)
    assert found, "there is nothing to check"
    return found
