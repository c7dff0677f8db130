"""Where figures were taken: without it a latency means nothing."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from d2prune.pruning.clock import device_name


def environment(device: torch.device) -> dict[str, Any]:
    """Return the device, versions, threads and command line of this process, as plain data."""
    return {
        "device": device_name(device),
        "d2prune": _version("d2prune"),
        "torch": torch.__version__,
        "detectron2": _version("detectron2"),
        "threads": torch.get_num_threads(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _version(package: str) -> str:
    """As the package says itself: a checkout on the path has no record of an installation."""
    try:
        return getattr(importlib.import_module(package), "__version__", "unknown")
    except ImportError:
        return "not installed"
