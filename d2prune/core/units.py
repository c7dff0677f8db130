"""Union-find over channels: which channels can only be removed together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Ties:
    """Disjoint sets of integers, created one by one (Tarjan's union-find with path halving)."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def new(self) -> int:
        """A new item, in a set of its own."""
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def find(self, item: int) -> int:
        """The representative of the item's set: its first item."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def tie(self, first: int, second: int) -> None:
        """Unites two sets."""
        a, b = self.find(first), self.find(second)
        if a != b:
            self._parent[max(a, b)] = min(a, b)

    def tie_all(self, items: Iterable[int]) -> None:
        """Unites the sets of all items."""
        items = list(items)
        for item in items[1:]:
            self.tie(items[0], item)


def blocks(channels: int, groups: int) -> list[Sequence[int]]:
    """GroupNorm: channels of one normalisation group, which share a mean, go together."""
    size = channels // groups
    return [range(g * size, (g + 1) * size) for g in range(groups)]


def combs(channels: int, groups: int) -> list[Sequence[int]]:
    """Grouped convolution: channel i of every group goes together, so that groups stay equal."""
    size = channels // groups
    return [range(i, channels, size) for i in range(size)]
