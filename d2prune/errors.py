"""The one error that users of the package are meant to catch, and those that it catches for them."""

from __future__ import annotations

from collections.abc import Mapping

MISFITS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a model's code raises when a width does not fit."""


class PruneError(ValueError):
    """A mistake in what was asked: names what was got, what is allowed, and the key, file or layer.

    Attributes:
        keys: the configuration keys that the message names, as it spells them ("MODEL.PRUNING.AMOUNT").
    """

    def __init__(self, message: str = "", *, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys

    def spelled(self, names: Mapping[str, str]) -> PruneError:
        """Return the error with its keys named as another kind of configuration names them.

        Args:
            names: the other spelling by key. An error without keys is searched for all of these.
        """
        text = str(self)
        for key in sorted(self.keys or names, key=len, reverse=True):  # AMOUNT is also part of other keys
            text = text.replace(key, names.get(key, key))
        return PruneError(text, keys=tuple(names.get(key, key) for key in self.keys))
