"""MODEL.PRUNING.FADE: what a prune would take fades while the rest trains as usual."""

from __future__ import annotations

import pytest
import torch

import d2prune
from d2prune.checkpoint import read_checkpoint
from d2prune.core.cut.surgery import removed_by
from d2prune.engine.fading import Fade, fading
from d2prune.errors import PruneError
from tests.each import each
from tests.engine.tiny_runs import log_of, run_cfg, weights_of

SETTINGS = ("SOLVER.MAX_ITER", 4, "DATASETS.TEST", (), "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.001)


def trained(folder, baseline, *pairs, resume=False):
    cfg = run_cfg(folder, *SETTINGS, "MODEL.WEIGHTS", str(baseline), *pairs)
    trainer = d2prune.PruneTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def hook_of(trainer):
    return next(hook for hook in trainer._hooks if isinstance(hook, Fade))


@pytest.fixture(scope="module")
def faded(data, baseline, tmp_path_factory):
    """(trainer, folder) of a training that leaves next to nothing of what goes."""
    folder = tmp_path_factory.mktemp("faded")
    return trained(folder, baseline, "MODEL.PRUNING.FADE", 1e-30), folder


def test_what_goes_fades_and_the_rest_does_not(faded, baseline):
    trainer, _ = faded
    marks = removed_by(trainer.model, hook_of(trainer)._spec)
    start = weights_of(baseline)
    for name, parameter in trainer.model.named_parameters():
        if name in marks:
            gone = marks[name] == 1
            assert parameter[gone].abs().max() < 1e-6
            assert parameter[~gone].abs().sum() > 0.5 * start[name].to(parameter.device)[~gone].abs().sum()


def test_what_faded_is_what_a_prune_takes_and_is_not_missed(faded):
    trainer, folder = faded
    model, images = trainer.model.eval(), torch.rand(2, 3, 64, 64, device=trainer.model.device) * 255
    cfg = trainer.cfg.MODEL.PRUNING
    result = d2prune.prune(
        model, cfg.AMOUNT, allocation=cfg.ALLOCATION, ratios=cfg.RATIOS, round_to=1, input_size=(64, 64)
    )
    assert result.step.layers == hook_of(trainer)._spec.layers
    with torch.no_grad(), d2prune.traceable(model) as whole, d2prune.traceable(result.model) as cut:
        for before, after in each(zip(whole(images), cut(images), strict=True)):
            assert torch.allclose(before, after, atol=1e-4)


def test_the_log_says_how_many_weights_fade(faded):
    assert "weights fade to 1e-30 in 4 iterations" in log_of(faded[1])


def test_every_step_takes_the_same_share(data, baseline, tmp_path):
    class Seen(Fade):
        def after_step(self):
            parameter, mark = self._fading[0]
            before = parameter.detach().clone()
            super().after_step()
            left.append((parameter[mark == 1] / before[mark == 1]).median().item())

    left = []
    cfg = run_cfg(tmp_path, *SETTINGS, "MODEL.WEIGHTS", str(baseline))
    faded = cfg.clone()
    faded.MODEL.PRUNING.FADE = 0.0625
    trainer = d2prune.PruneTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([Seen(faded)])
    trainer.train()
    assert left == pytest.approx([0.5] * 4)


def test_a_resumed_training_goes_on_with_the_same_channels(data, baseline, tmp_path):
    trained(tmp_path, baseline, "MODEL.PRUNING.FADE", 0.5, "SOLVER.MAX_ITER", 2)
    kept = read_checkpoint(tmp_path / "model_final.pth")["trainer"]["hooks"]["Fade"]["spec"]
    other = ("MODEL.PRUNING.FADE", 0.5, "MODEL.PRUNING.AMOUNT", 0.2)  # would choose others
    again = trained(tmp_path, baseline, *other, resume=True)
    assert again.iter == 4 and hook_of(again)._spec.to_json() == kept


def test_without_fading_there_is_no_hook(tmp_path):
    assert fading(run_cfg(tmp_path)) == []


def test_fine_tuning_goes_without_and_says_so(tmp_path, heard):
    assert fading(run_cfg(tmp_path, "MODEL.PRUNING.FADE", 0.01, "MODEL.FINETUNE", True)) == []
    assert "FADE 0.01 is for the training before MODEL.PRUNE" in heard.text


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_no_fraction_is_refused(tmp_path, fraction):
    with pytest.raises(PruneError, match=f"MODEL.PRUNING.FADE is {fraction}; expected 0"):
        fading(run_cfg(tmp_path, "MODEL.PRUNING.FADE", fraction))


def test_an_optimizer_that_trains_nothing_of_it_is_refused(data, baseline, tmp_path):
    cfg = run_cfg(tmp_path, *SETTINGS, "MODEL.WEIGHTS", str(baseline), "MODEL.PRUNING.FADE", 0.01)
    trainer = d2prune.PruneTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.optimizer.param_groups[0]["params"] = []
    del trainer.optimizer.param_groups[1:]
    with pytest.raises(PruneError, match="the optimizer trains no layer that MODEL.PRUNE would cut"):
        hook_of(trainer).before_train()
