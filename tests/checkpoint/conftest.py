"""One prune for all tests of this folder, the file it is saved to, and the log."""

from __future__ import annotations

import logging

import pytest
import torch

from d2prune.checkpoint import save
from tests.tiny_blendmask import tiny_model, tiny_prune


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def result():
    """Not to be changed: copy the model first."""
    return tiny_prune(tiny_model())


@pytest.fixture(scope="session")
def saved(result, tmp_path_factory):
    """The path of its file, which is not to be changed either."""
    path = tmp_path_factory.mktemp("pruned") / "x.pth"
    save(result, path)
    return path


@pytest.fixture
def log(caplog):
    """caplog, also where a trainer has told d2prune's logger not to propagate."""
    logger = logging.getLogger("d2prune")
    propagate, level = logger.propagate, logger.level
    logger.propagate = True
    logger.setLevel(logging.INFO)
    yield caplog
    logger.propagate = propagate
    logger.setLevel(level)
