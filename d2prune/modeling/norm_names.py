"""Two ways to name the norms of a BasicBlock in a state dict: beside its convolutions, or inside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NORM_OF = {"norm1": "conv1", "norm2": "conv2", "norm3": "shortcut"}
_SEPARATE = re.compile(r"(?P<block>.*?)\.?(?P<norm>norm[123])\.(?P<tensor>\w+)$")


def rename_separate_norms(state_dict: dict[str, Any], wanted: set[str] | Mapping[str, Any]) -> int:
    """Rename ``x.norm1.*`` to ``x.conv1.norm.*``, in place, where only the latter is in ``wanted``.

    Returns:
        The number of names changed.
    """
    renamed = 0
    for name in list(state_dict):
        match = _SEPARATE.match(name)
        if match is None or name in wanted:
            continue
        parts = [match["block"], _NORM_OF[match["norm"]], "norm", match["tensor"]]
        original = ".".join(part for part in parts if part)
        if original in wanted and original not in state_dict:
            state_dict[original] = state_dict.pop(name)
            renamed += 1
    return renamed
