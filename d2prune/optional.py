"""Whether the optional Detectron2 can be imported, and the error where it is needed and can't be."""

from __future__ import annotations

import importlib

from d2prune.errors import PruneError


class MissingDetectron2Error(PruneError, ImportError):
    """A request that needs Detectron2, which can't be imported."""


def _import_error(module: str) -> str:
    """Return the first line of the error that ``import module`` raises; empty if it works."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


WHY_NOT = _import_error("detectron2.modeling")
HAS_DETECTRON2 = not WHY_NOT


def needs_detectron2(what: str) -> MissingDetectron2Error:
    """Return the error to raise if ``what`` is asked for without Detectron2."""
    return MissingDetectron2Error(
        f"{what} needs Detectron2, which can't be imported ({WHY_NOT}): `pip install d2prune[detectron2]` "
        "brings all but Detectron2 itself, which `python tools/install_detectron2.py` installs"
    )
