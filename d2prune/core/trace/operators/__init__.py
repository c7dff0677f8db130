"""Rules that say how each operator passes labels on from its arguments to its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from d2prune.core.trace.operators.call import Labels, tensors_in
from d2prune.core.trace.operators.table import HANDLERS, handler_of, register_operator

__all__ = ["HANDLERS", "Labels", "follow", "register_operator", "tensors_in"]


def follow(labels: Labels, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Set the labels of what ``func(*args, **kwargs)`` returned, or wrote into its arguments."""
    arguments = func._schema.arguments
    bound = {**{a.name: value for a, value in zip(arguments, args, strict=False)}, **kwargs}
    if not any(labels.of(t) for t in tensors_in(bound)):
        return
    if out is None:
        written = [bound[a.name] for a in arguments if a.is_write and a.name in bound]
        out = written[0] if len(written) == 1 else written
    handler_of(func)(labels, func, bound, out)
