"""The versions that `make setup` and `make test-oldest` install."""

import runpy

from tests.each import each
from tests.meta.test_import_direction import ROOT
from tests.meta.test_packaging import declared

MAKE_VENV = runpy.run_path(str(ROOT / "tools" / "make_venv.py"))
NEWEST = ROOT / "requirements" / "constraints.txt"
OLDEST = ROOT / "requirements" / "oldest.txt"


def pins(text):
    """The line of each package that constraints name."""
    lines = [line for line in text.splitlines() if MAKE_VENV["pinned"](line)]
    named = {MAKE_VENV["pinned"](line): line for line in lines}
    assert len(named) == len(lines)
    return named


def test_the_oldest_come_before_the_newest_and_nothing_else_changes():
    newest, oldest = pins(NEWEST.read_text()), pins(OLDEST.read_text())
    assert pins(MAKE_VENV["pins_with"](OLDEST)) == {**newest, **oldest}
    assert pins(MAKE_VENV["pins_with"](None)) == newest
    assert all(newest[name] != line for name, line in each(oldest.items()))


def test_the_oldest_torch_is_the_oldest_that_setup_allows():
    needed, extras = declared()
    oldest = pins(OLDEST.read_text())
    for name in ("torch", "torchvision"):
        (asked,) = {text for text in [*needed, *extras["all"]] if text.startswith(f"{name}>=")}
        assert oldest[name] == asked.replace(">=", "==") + ".0"


def test_names_are_compared_as_pip_does():
    assert [MAKE_VENV["pinned"](line) for line in ("Typing_Ext.x==1 ; a", "a>=2", "# a", "")] == [
        "typing-ext-x", "a", "", "",
    ]  # fmt: skip
