"""Timing of calls on any device, and the device's name: without it a time means nothing."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return how long one call takes, the work that it queues included."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def rounds(warmup: int, runs: int, seconds: float, fewest: int = 1) -> Iterator[int]:
    """Yield the numbers of rounds in which calls take turns, negative ones to warm up, as far as time allows.

    Args:
        warmup: rounds that are not timed; they take a quarter of the time at most, but one is made.
        runs: rounds that are.
        seconds: the time.
        fewest: of the timed ones, made in any case.
    """
    begin, turn = time.monotonic(), -warmup
    while turn < runs:
        yield turn
        taken, turn = time.monotonic() - begin, turn + 1
        if turn < 0 and taken > seconds / 4:
            turn = 0
        if turn >= fewest and taken > seconds:
            return


def is_accelerator(device: torch.device) -> bool:
    """Whether work on the device is queued, so that a clock must wait for it."""
    if not torch.accelerator.is_available():  # torch 2.6 raises where it is asked which one there is
        return False
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and accelerator.type == device.type


def device_name(device: torch.device) -> str:
    """Return the maker's name of an accelerator or a processor, else the device's type."""
    if is_accelerator(device):
        module = torch.get_device_module(device)
        name = getattr(module, "get_device_name", None)
        return f"{device.type}: {name(device)}" if name else device.type
    return f"{device.type}: {_processor()}"


def _processor() -> str:
    """Linux keeps the name out of reach of ``platform``."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _synchronize(device: torch.device) -> None:
    if is_accelerator(device):
        torch.accelerator.synchronize(device)
