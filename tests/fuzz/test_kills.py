"""Prunes and fine-tunes that are killed at any moment are carried to their end by --resume."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from d2prune.checkpoint import read_checkpoint, read_spec
from d2prune.engine import finished as mark
from d2prune.files import OURS
from tests.each import each
from tests.engine.tiny_runs import write_coco
from tests.fuzz import runs
from tests.fuzz.runs import finished, killed_after, start
from tests.tiny_blendmask import tiny_model

pytestmark = pytest.mark.slow
KILLS = 50
TRAINING = ("SOLVER.MAX_ITER", 12, "SOLVER.CHECKPOINT_PERIOD", 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of tiny_train and tiny_val, which the runs' processes register."""
    runs.preload()
    root = tmp_path_factory.mktemp("data")
    for name, count, seed in (("tiny_train", 4, 0), ("tiny_val", 2, 1)):
        write_coco(root / name, count, seed)
    return root


@pytest.fixture(scope="module")
def prune(tmp_path_factory) -> tuple:
    """The words of the prune."""
    path = tmp_path_factory.mktemp("baseline") / "model_final.pth"
    torch.save({"model": tiny_model().state_dict(), "iteration": 9}, path)
    words = ("--resume", "MODEL.PRUNE", "True", "MODEL.WEIGHTS", path)
    return (*words, "MODEL.PRUNING.CALIBRATION_IMAGES", 0)  # else most kills would fall into calibration


@pytest.fixture(scope="module")
def pruned(data, prune, tmp_path_factory) -> tuple[Path, float]:
    """The folder of a prune that was left alone, and the seconds that it used."""
    return whole(data, tmp_path_factory.mktemp("pruned"), prune)


def whole(data: Path, folder: Path, words: tuple) -> tuple[Path, float]:
    """(folder, seconds used) of an uninterrupted run, after one that has read what the disk holds."""
    for name in ("first", "second"):
        code, seconds = finished(start(data, folder / name, *words))
        assert code == 0, (folder / f"{name}.log").read_text()[-3000:]
    return folder / "second", seconds


def check_folder(folder: Path, like: Path) -> None:
    """All files of an uninterrupted run are there, and no half ones but temporary files."""
    names = {file.name for file in folder.iterdir()}
    half = [name for name in names if OURS in name]
    assert names >= {f.name for f in like.iterdir() if not f.name.startswith("events.out")}
    assert [name for name in half if not (name.startswith(".") and name.endswith(".tmp"))] == []
    for file in each(folder.glob("model*.pth")):
        assert read_spec(file) == read_spec(like / file.name), file.name
        assert read_checkpoint(file)["model"].keys() == read_checkpoint(like / file.name)["model"].keys()


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_prune_is_carried_to_its_end(data, prune, pruned, tmp_path, number):
    like, seconds = pruned
    killed_and_resumed(data, tmp_path / "run", prune, seconds, number)
    check_folder(tmp_path / "run", like)
    assert (tmp_path / "run" / mark.FILE).is_file() and (tmp_path / "run" / "pruning_report.html").is_file()


@pytest.fixture(scope="module")
def tuning(pruned) -> tuple:
    """The words of the fine-tune."""
    return ("--resume", "MODEL.FINETUNE", "True", "MODEL.WEIGHTS", pruned[0] / "model_pruned.pth", *TRAINING)


@pytest.fixture(scope="module")
def tuned(data, tuning, tmp_path_factory) -> tuple[Path, float]:
    """The folder of a fine-tune that was left alone, and the seconds that it used."""
    return whole(data, tmp_path_factory.mktemp("tuned"), tuning)


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_fine_tune_is_carried_to_its_end(data, tuning, tuned, tmp_path, number):
    like, seconds = tuned
    killed_and_resumed(data, tmp_path / "run", tuning, seconds, number)
    check_folder(tmp_path / "run", like)
    final = read_checkpoint(tmp_path / "run" / "model_final.pth")
    assert final["iteration"] == read_checkpoint(like / "model_final.pth")["iteration"]


def killed_and_resumed(data: Path, folder: Path, words: tuple, seconds: float, number: int) -> None:
    """The run is killed at a moment in its own part of the seconds that a whole one takes."""
    rng = Random(number)
    moment = seconds * (number + rng.random()) / KILLS
    alive = killed_after(start(data, folder, *words), moment, more=0.04 * rng.random())
    print(f"killed after {moment:.2f} of {seconds:.2f} s: {'alive' if alive else 'over'}; left:", end=" ")
    print(*sorted(file.name for file in folder.glob("*") if file.is_file()))
    code, _ = finished(start(data, folder, *words))
    assert code == 0, folder.with_name("run.log").read_text()[-3000:]
