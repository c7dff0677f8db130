"""What every test shares: threads, the shared folder, and the skipping of what needs a GPU."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _threads() -> int:
    """Two at the most: small models gain nothing from more. Fewer where xdist shares the cores."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(1, min(2, (os.cpu_count() or 1) // workers))


def pytest_configure() -> None:
    threads = int(os.environ.setdefault("OMP_NUM_THREADS", str(_threads())))  # processes inherit it
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and there is none"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of fixtures beside the checkout, which not every machine has."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED.name} beside the checkout")
    return SHARED
