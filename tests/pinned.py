"""Tests of what another project says or fails with, which its next version may change."""

from importlib.metadata import PackageNotFoundError, version

import pytest


def pinned(package: str, expected: str) -> pytest.MarkDecorator:
    """Skips, with the reason, where ``package`` is not of the version that the test was written for.

    A local part (``+cpu``, ``+cu128``) makes no difference.
    """
    try:
        found = version(package).partition("+")[0]
    except PackageNotFoundError:
        found = "absent"
    return pytest.mark.skipif(
        found != expected, reason=f"holds what {package} {expected} does; here it is {found}"
    )
