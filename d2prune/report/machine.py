"""Where figures were taken: without it a latency means nothing."""

from __future__ import annotations

import importlib
import platform
import sys
from pathlib import Path
from typing import Any

import torch


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


def device_name(device: torch.device) -> str:
    """Return the maker's name of an accelerator or a processor, else the device's type."""
    if is_accelerator(device):
        module = torch.get_device_module(device)
        name = getattr(module, "get_device_name", None)
        return f"{device.type}: {name(device)}" if name else device.type
    return f"{device.type}: {_processor()}"


def is_accelerator(device: torch.device) -> bool:
    """Whether work on the device is queued, so that a clock must wait for it."""
    if not torch.accelerator.is_available():  # torch 2.6 raises where it is asked which one there is
        return False
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and accelerator.type == device.type


def _processor() -> str:
    """Linux keeps the name out of reach of ``platform``."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    """As the package says itself: a checkout on the path has no record of an installation."""
    try:
        return getattr(importlib.import_module(package), "__version__", "unknown")
    except ImportError:
        return "not installed"
