"""A baseline and one prune for all tests of this folder; loggers are put back."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch

from tests.engine.tiny_runs import command, loggers_put_back
from tests.tiny_blendmask import CONFIG, tiny_model


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Two threads that share a busy machine spin more than they compute, on models this small."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _like_before():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    with loggers_put_back():
        yield


@pytest.fixture(scope="session")
def baseline(tmp_path_factory):
    """A file as Detectron2 writes one, of a model that detects something."""
    path = tmp_path_factory.mktemp("baseline") / "model_final.pth"
    torch.save({"model": tiny_model().state_dict(), "iteration": 9}, path)
    (path.parent / "last_checkpoint").write_text(path.name)
    return path


@pytest.fixture(scope="session")
def pruned(data, baseline, tmp_path_factory):
    """The folder that MODEL.PRUNE True leaves. Not to be written to: copy it first."""
    folder = tmp_path_factory.mktemp("pruned") / "run"
    words = ("MODEL.PRUNE", "True", "MODEL.WEIGHTS", str(baseline))
    folder.mkdir()
    command(CONFIG, folder, *words)
    return folder


@pytest.fixture
def heard():
    """The messages of d2prune's loggers, wherever else they go."""

    class Heard(logging.Handler):
        def __init__(self):
            super().__init__()
            self.text = ""

        def emit(self, record):
            self.text += record.getMessage() + "\n"

    handler, logger = Heard(), logging.getLogger("d2prune")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
