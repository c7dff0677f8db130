"""What trains in fine-tuning: everything, unless the user says otherwise."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

import d2prune
from d2prune.checkpoint import build_from_cfg, read_checkpoint
from d2prune.engine.finetuning import after_prune, check_output_dir
from tests.each import each
from tests.engine.tiny_runs import run_cfg, weights_of
from tests.tiny_blendmask import NARROW_R_50, detect, equal, tiny_cfg, tiny_model

FROZEN = (".stem.", ".res2.")


@pytest.fixture(scope="module")
def frozen_baseline(tmp_path_factory):
    """A narrow ResNet-50 with FrozenBN and FREEZE_AT 2."""
    path = tmp_path_factory.mktemp("frozen") / "base.pth"
    torch.save({"model": tiny_model(*NARROW_R_50).state_dict()}, path)
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["kept", "thawed"])
def tuned(request, data, frozen_baseline, tmp_path_factory):
    """(KEEP_FROZEN, the trainer at its end, its folder) of PRUNE and FINETUNE at once."""
    folder = tmp_path_factory.mktemp("tuned")
    cfg = run_cfg(
        folder, *NARROW_R_50, "MODEL.PRUNE", True, "MODEL.FINETUNE", True, "DATASETS.TEST", (),
        "MODEL.WEIGHTS", str(frozen_baseline), "MODEL.PRUNING.KEEP_FROZEN", request.param,
        "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.01,
    )  # fmt: skip
    trainer = d2prune.PruneTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return request.param, trainer, folder


def moved(folder):
    """Names of the backbone's tensors that training changed, the running statistics aside."""
    start, final = (weights_of(folder / f"model_{n}.pth") for n in ("pruned", "final"))
    names = [n for n in start if ".bottom_up." in n and ".running_" not in n]
    return {n for n in names if not torch.equal(start[n], final[n])}


def test_frozen_layers_train_unless_kept(tuned):
    keep, trainer, folder = tuned
    changed = moved(folder)
    assert any(".res4." in name for name in changed)
    assert any(part in name for name in changed for part in FROZEN) == (not keep)
    assert any(".norm." in name for name in changed) == (not keep)
    parameters = dict(trainer.model.named_parameters())
    assert all(p.requires_grad for p in each(parameters.values())) == (not keep)


def test_frozen_norms_train_unless_kept(tuned):
    keep, trainer, folder = tuned
    kinds = {type(m) for m in trainer.model.backbone.modules() if hasattr(m, "running_var")}
    assert kinds == {FrozenBatchNorm2d if keep else nn.BatchNorm2d}
    start, final = (weights_of(folder / f"model_{n}.pth") for n in ("pruned", "final"))
    statistics = [n for n in start if ".bottom_up." in n and "running_mean" in n]
    assert all(torch.equal(start[n], final[n]) == keep for n in each(statistics))


def test_the_log_says_what_was_frozen(tuned):
    keep, _, folder = tuned
    log = (folder / "log.txt").read_text()
    assert ("stay frozen" in log) == keep
    assert ("RESNETS.NORM FrozenBN, BACKBONE.FREEZE_AT 2 are ignored" in log) == (not keep)


def test_the_prune_itself_leaves_frozen_norms_frozen(tuned):
    _, _, folder = tuned
    model = build_from_cfg(tiny_cfg(*NARROW_R_50, "MODEL.WEIGHTS", str(folder / "model_pruned.pth")))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.backbone.modules())
    parameters = dict(model.backbone.bottom_up.stem.named_parameters())
    assert parameters and not any(p.requires_grad for p in parameters.values())


def test_the_result_computes_the_same_through_pruned_yaml(tuned):
    keep, trainer, folder = tuned
    cfg = d2prune.get_cfg()
    cfg.merge_from_file(str(folder / "pruned.yaml"))
    loaded, trained = detect(build_from_cfg(cfg)), detect(trainer.model)
    if keep:
        assert equal(loaded, trained)
    # FrozenBN multiplies in another order than BatchNorm.
    assert torch.equal(loaded["pred_classes"], trained["pred_classes"])
    assert torch.allclose(loaded["pred_boxes"], trained["pred_boxes"], atol=0.01)


def test_resume_keeps_thawed_layers_trained(tuned, tmp_path):
    keep, trainer, folder = tuned
    cfg = run_cfg(
        folder, *NARROW_R_50, "MODEL.FINETUNE", True, "DATASETS.TEST", (),
        "MODEL.WEIGHTS", str(folder / "model_pruned.pth"), "MODEL.PRUNING.KEEP_FROZEN", keep,
        "SOLVER.OPTIMIZER", "SGD",
    )  # fmt: skip
    again = d2prune.PruneTrainer(cfg)
    again.resume_or_load(resume=True)
    assert again.start_iter == 2 and again.iter == 1
    assert equal(weights_of(folder / "model_final.pth"), dict(again.model.cpu().state_dict()))


def test_the_spec_in_the_result_is_the_prunes(tuned):
    _, _, folder = tuned
    specs = [read_checkpoint(folder / f"model_{n}.pth")["prune_spec"] for n in ("pruned", "final")]
    assert specs[0] == specs[1]


def test_after_prune_changes_a_copy(tmp_path):
    cfg = run_cfg(tmp_path, "MODEL.PRUNE", True, "MODEL.FINETUNE", True, "MODEL.WEIGHTS", "x.pth")
    tuning = after_prune(cfg)
    assert cfg.MODEL.PRUNE and cfg.MODEL.WEIGHTS == "x.pth"
    assert not tuning.MODEL.PRUNE and tuning.MODEL.WEIGHTS == str(tmp_path / "model_pruned.pth")


def test_a_second_unpruned_model_is_set_aside_beside_the_first(tmp_path):
    for number in (1, 2, 3):
        torch.save({"model": {"w": torch.tensor(number)}}, tmp_path / "model_final.pth")
        check_output_dir(run_cfg(tmp_path), resume=False)
    assert len(list(tmp_path.glob("*.pth"))) == 3
    for suffix, number in {"": 1, "_2": 2, "_3": 3}.items():
        assert weights_of(tmp_path / f"model_final_unpruned{suffix}.pth")["w"] == number
