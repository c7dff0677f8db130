"""The one error that users of the package are meant to catch, and the errors that it replaces."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path

MISFITS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that a model's code may raise when a width does not fit."""

_PACKAGE = Path(__file__).parent
_CALLS = ("__torch_function__", "__torch_dispatch__", "redo")  # where we make the calls of a model's code


class PruneError(ValueError):
    """A request that can't be met; the message gives the value, what is allowed, and the key, file or layer.

    Attributes:
        keys: the configuration keys that the message names, as it spells them ("MODEL.PRUNING.AMOUNT").
    """

    def __init__(self, message: str = "", *, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys

    def spelled(self, names: Mapping[str, str]) -> PruneError:
        """Return the error with its keys named as another kind of configuration names them.

        Args:
            names: the other spelling by key.
        """
        text = str(self)
        for key in sorted(self.keys, key=len, reverse=True):  # AMOUNT is also part of other keys
            text = text.replace(key, names.get(key, key))
        return PruneError(text, keys=tuple(names.get(key, key) for key in self.keys))


def told(error: Exception) -> str:
    """Return the message of an error that a model's code raised; if it is empty, its type and line.

    Raises:
        AttributeError: ``error`` itself, if d2prune's own code raised it, which is a bug in d2prune.
        TypeError: likewise.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    path = Path(last.filename)
    ours = path.is_relative_to(_PACKAGE) and last.name not in _CALLS
    models = path.is_relative_to(_PACKAGE / "modeling") or path.name == "trace_input.py"
    if isinstance(error, (AttributeError, TypeError)) and ours and not models:
        raise error
    return str(error) or f"{type(error).__name__} at {path.name}, line {last.lineno}: {last.line}"
