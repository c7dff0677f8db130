"""A fine-tuning that was interrupted goes on as if it had not been, from the last sound checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase

from d2prune.checkpoint import PruningCheckpointer
from d2prune.engine import finetuning
from d2prune.errors import PruneError
from tests.each import each
from tests.engine.tiny_runs import command, run_cfg, train_net, weights_of
from tests.tiny_blendmask import CONFIG, equal

STEPS = 4
WORDS = (
    "MODEL.FINETUNE", "True", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", str(STEPS),
    "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.BASE_LR", "0.01", "INPUT.RANDOM_FLIP", "horizontal",
)  # fmt: skip


class Killed(BaseException):
    pass


class KillAfter(HookBase):
    def __init__(self, step):
        self.step = step

    def after_step(self):
        if self.trainer.iter == self.step:
            raise Killed


def tune(folder, pruned, *words):
    weights = "MODEL.WEIGHTS", str(pruned / "model_pruned.pth")
    return command(CONFIG, folder, *words, *WORDS, *weights)


@pytest.fixture
def killed(pruned, tmp_path, monkeypatch):
    """The folder of a fine-tuning that was killed after two of its iterations, each of which it saved."""
    trainer = train_net().Trainer
    with monkeypatch.context() as patched, pytest.raises(Killed):
        hooks = trainer.build_hooks
        patched.setattr(trainer, "build_hooks", lambda self: [*hooks(self), KillAfter(1)])
        tune(tmp_path, pruned)
    assert sorted(file.name for file in tmp_path.glob("*.pth")) == ["model_0000000.pth", "model_0000001.pth"]
    return tmp_path


@pytest.fixture(scope="module")
def whole(pruned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tune(folder, pruned)
    return weights_of(folder / "model_final.pth")


def test_a_resumed_fine_tuning_ends_with_the_very_weights(killed, pruned, whole, heard):
    moved = weights_of(pruned / "model_pruned.pth")
    assert not equal(moved, whole)
    tune(killed, pruned, "--resume")
    assert "begins anew" not in heard.text
    assert equal(weights_of(killed / "model_final.pth"), whole)


def test_a_run_killed_before_its_last_file_writes_it_when_resumed(pruned, whole, tmp_path, monkeypatch):
    save = PruningCheckpointer.save

    def killed(self, name, **kwargs):
        if name == "model_final":
            raise Killed
        save(self, name, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(PruningCheckpointer, "save", killed)
        tune(tmp_path, pruned)
    assert (tmp_path / "last_checkpoint").read_text() == f"model_{STEPS - 1:07d}.pth"
    tune(tmp_path, pruned, "--resume")
    assert equal(weights_of(tmp_path / "model_final.pth"), whole)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize("damage", ["cut short", "a bit flipped"])
def test_a_damaged_checkpoint_is_passed_over(killed, pruned, whole, heard, damage):
    file = killed / "model_0000001.pth"
    data = bytearray(file.read_bytes())
    if damage == "cut short":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 1
    file.write_bytes(data)
    tune(killed, pruned, "--resume")
    assert "going on from 'model_0000000.pth', the one before" in heard.text
    assert equal(weights_of(killed / "model_final.pth"), whole)


def test_another_optimizer_is_named(killed, pruned):
    with pytest.raises(
        PruneError, match=r"model_0000001.pth' can't be resumed, it holds the state of another opt"
    ):
        tune(killed, pruned, "--resume", "SOLVER.OPTIMIZER", "SGD", "SOLVER.WEIGHT_DECAY_BIAS", "0.5")


def test_a_damaged_prune_is_made_anew(pruned, baseline, tmp_path, heard):
    folder = tmp_path / "run"
    shutil.copytree(pruned, folder)
    file = folder / "model_pruned.pth"
    file.write_bytes(file.read_bytes()[:-100])
    cfg = run_cfg(folder, "MODEL.PRUNE", True, "MODEL.WEIGHTS", str(baseline))
    assert not finetuning.is_pruned(cfg) and "it is pruned anew" in heard.text
    shutil.copy(pruned / "model_pruned.pth", file)
    assert finetuning.is_pruned(cfg)


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(pruned, tmp_path, monkeypatch):
    class Poison(HookBase):
        def before_step(self):
            if self.trainer.iter == 2:
                parameters = list(self.trainer.model.parameters())
                torch.nn.init.constant_(parameters[0], torch.nan)

    trainer = train_net().Trainer
    hooks = trainer.build_hooks
    monkeypatch.setattr(trainer, "build_hooks", lambda self: [Poison(), *hooks(self)])
    with pytest.raises(
        PruneError, match=r"NaN at iteration=2! The last good .*model_0000001.pth'. Lower SOLVER"
    ):
        tune(tmp_path, pruned)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_weights_that_are_no_numbers_are_not_saved(pruned, tmp_path, monkeypatch):
    class Poison(HookBase):  # after a loss that was good
        def after_step(self):
            if self.trainer.iter == 1:
                torch.nn.init.constant_(next(self.trainer.model.parameters()), torch.inf)

    trainer = train_net().Trainer
    hooks = trainer.build_hooks
    monkeypatch.setattr(trainer, "build_hooks", lambda self: [Poison(), *hooks(self)])
    with pytest.raises(PruneError, match=r"has diverged: model_0000001.pth is not written"):
        tune(tmp_path, pruned)
    assert [file.name for file in tmp_path.glob("*.pth")] == ["model_0000000.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"


def test_the_last_checkpoint_must_exist(tmp_path):
    folder = str(tmp_path)
    assert finetuning.last_checkpoint(folder) == ""
    (tmp_path / "last_checkpoint").write_text("gone.pth\n")
    assert finetuning.last_checkpoint(folder) == ""
    finetuning.fall_back(folder)
    (tmp_path / "gone.pth").touch()
    assert finetuning.last_checkpoint(folder) == str(tmp_path / "gone.pth")
    finetuning.fall_back(folder)
    assert Path(finetuning.last_checkpoint(folder)).name == "gone.pth", "no other: reading it says why"


def test_paths_may_hold_spaces_but_no_question_mark(pruned, tmp_path):
    with pytest.raises(PruneError, match=r"OUTPUT_DIR is '.*what\?'; expected a folder without '\?'"):
        tune(tmp_path / "what?", pruned)
    folder = tmp_path / "two words, (and more)"
    tune(folder, pruned, "SOLVER.MAX_ITER", "1")
    tune(folder, pruned, "--resume", "SOLVER.MAX_ITER", "2")
    assert (folder / "model_final.pth").is_file() and (folder / "pruned.yaml").is_file()
    assert len(each(weights_of(folder / "model_final.pth")))


def test_fine_tuning_clips_gradients(pruned, tmp_path):
    clip = "SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"
    tune(tmp_path, pruned, "SOLVER.MAX_ITER", "1", *clip, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0")
    start, end = weights_of(pruned / "model_pruned.pth"), weights_of(tmp_path / "model_final.pth")
    trained = {name for name in start if name.endswith(".bias") and start[name].abs().max() == 0}
    assert all(torch.equal(start[name], end[name]) for name in each(trained)), "a norm of 0: nothing moves"
    assert run_cfg(tmp_path).SOLVER.CLIP_GRADIENTS.CLIP_TYPE == "value"
