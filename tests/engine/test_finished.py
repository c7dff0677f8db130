"""A prune that was interrupted is not taken for a finished one, nor one prune for another."""

from __future__ import annotations

import shutil

import pytest

from d2prune.engine import finished, pruning_run
from d2prune.errors import PruneError
from tests.engine.tiny_runs import command, run_cfg
from tests.tiny_blendmask import CONFIG


def prune(folder, baseline, *words):
    return command(CONFIG, folder, "--resume", "MODEL.PRUNE", "True", "MODEL.WEIGHTS", str(baseline), *words)


def test_a_prune_killed_after_its_checkpoint_is_made_anew(pruned, baseline, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    folder = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(pruning_run, "_finish", killed)
        prune(folder, baseline)
    assert (folder / "model_pruned.pth").is_file() and not (folder / finished.FILE).exists()
    results = prune(folder, baseline)
    assert results and (folder / "pruning_report.html").is_file() and (folder / finished.FILE).is_file()
    assert {f.name for f in pruned.iterdir()} <= {f.name for f in folder.iterdir()}


def test_a_prune_that_begins_takes_the_old_mark_away(pruned, baseline, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(pruned, folder)

    def broken(*_, **__):
        raise PruneError("broken")

    monkeypatch.setattr(pruning_run, "prune_model", broken)
    with pytest.raises(PruneError, match="broken"):
        command(CONFIG, folder, "MODEL.PRUNE", "True", "MODEL.WEIGHTS", str(baseline))
    assert not (folder / finished.FILE).exists()


@pytest.mark.parametrize(
    ("key", "before", "now"), [("AMOUNT", "0.5", "0.2"), ("PROTECT", r"\[\]", r"\['x'\]")]
)
def test_another_request_is_refused(pruned, baseline, tmp_path, key, before, now):
    folder = tmp_path / "run"
    shutil.copytree(pruned, folder)
    words = f"MODEL.PRUNING.{key}", now.replace("\\", "")
    with pytest.raises(PruneError, match=rf"pruned with MODEL.PRUNING.{key} {before}, and .* is {now} now"):
        prune(folder, baseline, *words)
    with pytest.raises(PruneError, match="pruned with MODEL.WEIGHTS .*set OUTPUT_DIR to another folder"):
        prune(folder, tmp_path / "other.pth")


def test_the_mark_is_of_what_decides(tmp_path):
    cfg = run_cfg(tmp_path, "MODEL.WEIGHTS", "detectron2://x.pkl", "MODEL.PRUNING.RATIOS", [["a", 0.5]])
    finished.end(cfg)
    assert finished.is_finished(cfg)
    cfg.MODEL.PRUNING.SAVE_STRUCT = False  # what comes out is the same
    assert finished.is_finished(cfg)
    finished.begin(cfg)
    assert not finished.is_finished(cfg)
