"""Places that a fork has, and refusals where it hasn't."""

from __future__ import annotations

import pytest

from d2prune.errors import PruneError
from d2prune.patching import apply, check
from tests.patching.made_up_fork import FORK, edit, write

TWICE = FORK + "\n\ndef last(y):\n    pass\n"
EITHER = FORK.replace("    def setup(", "    def setup(a):\n        pass\n\n    def setup(")
SUBCLASS = edit("e", "after", "Trainer", lines=["class Trainer(ours.Mixin, Trainer):", "    pass"])
REFUSED = {
    "gone": (FORK, edit("e", "start", "Trainer.walk"), "the fork has no 'walk'; there are: size, run, build"),
    "close": (FORK, edit("e", "start", "Trainer.biuld"), "has no 'biuld'; did you mean 'build'"),
    "gone class": (FORK, edit("e", "start", "Traner.run"), "has no 'Traner'; did you mean 'Trainer'"),
    "twice": (TWICE, edit("e", "start", "last"), "'last' is defined 2 times, in lines"),
    "either": (EITHER, edit("e", "start", "setup"), "'setup' is defined 2 times, in lines"),
    "one line": (FORK, edit("e", "start", "Trainer.size"), "first statement is not on a line of its own"),
    "no return": (FORK, edit("e", "before return", "Trainer.build"), "does not end with a return"),
    "return": (FORK, edit("e", "end", "Trainer.run"), "ends with a return or a raise"),
    "no variable": (FORK, edit("e", "after assignment", "last", variable="cfg"), "assigned to 'cfg'"),
    "not used": (FORK, edit("e", "before return", "setup", uses=("cfg", "model")), "use 'model'"),
    "base by hand": (
        FORK.replace("(Größe, metaclass=type)", "(ours.Mixin, Größe)"),
        SUBCLASS,
        "the class has the base ours.Mixin already",
    ),
    "super by name": (
        FORK.replace("self.kept = cfg", "super(Trainer, self).__init__()"),
        SUBCLASS,
        "calls super(Trainer, ...), which would call itself without end; write super() there first",
    ),
    "class": (FORK, edit("e", "before return", "Plain"), "expected a function"),
    "module": (FORK, edit("e", "before"), "expected a class or a function"),
    "two in a line": (
        FORK.replace("cfg = [args]\n        cfg.append", "cfg = [args]; cfg.append"),
        edit("e", "after assignment", "setup", variable="cfg"),
        "holds two statements",
    ),
    "future": (
        FORK.replace("import os, sys", "from __future__ import annotations\nimport os, sys"),
        edit("e", "start"),
        "with it, pkg/train.py is not valid Python: from __future__",
    ),
    "our mistake": (FORK, edit("e", "start", "setup", lines=["if:"]), "with it, pkg/train.py is not valid"),
    "no python": ("def f(:\n    pass\n", edit("e", "start", "f"), "pkg/train.py is not valid Python"),
    "empty": ("", edit("e", "end"), "the file is empty"),
    "python 2": ("def f():\n    print 1\n", edit("e", "start", "f"), "pkg/train.py is not valid Python"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_says_why_and_writes_nothing(case, tmp_path):
    text, wanted, message = REFUSED[case]
    root, path = write(tmp_path, text)
    with pytest.raises(PruneError, match="pkg/train.py") as caught:
        apply([wanted], root)
    assert message in str(caught.value)
    assert path.read_bytes() == text.encode()
    (finding,) = check([wanted], root)
    assert finding.state is None and message in str(finding)


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(PruneError, match="test/e .*pkg/train.py' can't be read .No such file"):
        apply([edit("e", "end")], tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    root, path = write(tmp_path)
    path.write_bytes(b"x = '\xff'\n")
    with pytest.raises(PruneError, match="pkg/train.py is no Python text"):
        apply([edit("e", "end")], root)
