"""Criteria by name, open to code outside the package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from d2prune.errors import PruneError

Value = TypeVar("Value")


class Registry(Mapping[str, Value]):
    """A mapping from names to values whose error for an unknown name lists the known ones."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._values: dict[str, Value] = {}

    def register(self, name: str) -> Callable[[Value], Value]:
        """Return a decorator that registers its argument; it raises PruneError if the name is taken."""

        def add(value: Value) -> Value:
            if self._values.get(name, value) is not value:
                raise PruneError(f"{self._key} '{name}' is registered already", keys=(self._key,))
            self._values[name] = value
            return value

        return add

    def __getitem__(self, name: str) -> Value:
        if name not in self._values:
            known = ", ".join(self._values)
            raise PruneError(f"{self._key} is {name!r}; expected one of: {known}", keys=(self._key,))
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
