"""One thread and one seed for every test; the small models of the architectures' own tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


pytest.register_assert_rewrite("tests.adapters.families")
