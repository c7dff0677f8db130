"""Runs of a trainer leave loggers behind: they are put back."""

import pytest

from tests.engine.tiny_runs import loggers_put_back


@pytest.fixture(autouse=True)
def _loggers():
    with loggers_put_back():
        yield
