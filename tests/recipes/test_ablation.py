"""One step at a time: pruned, trained for a little, evaluated, kept or rolled back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import d2prune
from d2prune import PruneError
from d2prune.checkpoint import build_from_cfg, spec_of_file
from d2prune.engine.settings import FINAL_FILE, check_modes, request_from_cfg, trace_input_from_cfg
from d2prune.pruning import prune_model
from d2prune.recipes import Recipe, Step
from d2prune.recipes.ablation import ablate, ablation_table, largest_kept
from d2prune.report.record import Stage, report_of, write_report_json
from tests.engine.tiny_runs import TRAINING, train_net
from tests.tiny_lsknet import pairs_of, tiny_lsk, tiny_lsk_cfg

HEAD = Step("head", {"MODEL.ROI_BOX_HEAD.FC_DIM": 24})
MLP = Step("mlp", {"MODEL.LSKNET.MLP_RATIOS": [3, 3, 3, 3]})
GATE = Step("gate", {"MODEL.LSKNET.BRANCH_DIVISORS": [2, 2, 4, 4]})
FC1, MLP1 = "roi_heads.box_head.fc1", "backbone.bottom_up.block4.0.mlp.fc1"


@pytest.fixture(scope="module")
def weights(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("baseline") / "model_final.pth"
    torch.save({"model": tiny_lsk().state_dict()}, path)
    return str(path)


def run_cfg(weights, output, **keys):
    cfg = tiny_lsk_cfg(WEIGHTS=weights, PRUNING__VERIFY=False, **keys)
    cfg.merge_from_list([*pairs_of(TRAINING), "OUTPUT_DIR", str(output)])
    return cfg


class Judged:
    """Prunes as the trainer does; the APs are given."""

    aps: dict[str, float] = {}
    started: list[str] = []

    def __init__(self, cfg):
        check_modes(cfg)
        self.cfg = cfg
        self.started.append(cfg.MODEL.WEIGHTS)

    def resume_or_load(self, resume):
        assert not resume and self.cfg.MODEL.PRUNE and self.cfg.MODEL.FINETUNE

    def train(self):
        model = build_from_cfg(self.cfg)
        result = prune_model(model, request_from_cfg(self.cfg), trace_input_from_cfg(self.cfg, model), False)
        d2prune.save(result, Path(self.cfg.OUTPUT_DIR) / FINAL_FILE)
        aps = {"baseline": 40.0, "pruned": 1.0, "fine-tuned": self.aps[Path(self.cfg.OUTPUT_DIR).name]}
        stages = tuple(Stage(name, result.after.params, 0, ap) for name, ap in aps.items())
        report = report_of(result, (64, 64), torch.device("cpu"))
        write_report_json(replace(report, stages=stages), self.cfg.OUTPUT_DIR)


def judged(**aps):
    return type("Judged", (Judged,), {"aps": aps, "started": []})


def widths(folder):
    spec = spec_of_file(str(Path(folder) / FINAL_FILE))
    return {name: len(spec.layers[name].out) for name in (FC1, MLP1) if name in spec.layers}


def test_what_is_kept_is_built_upon(weights, tmp_path):
    trainer = judged(step1=39.0, step2=38.5)
    trials = ablate(run_cfg(weights, tmp_path), Recipe("p", (HEAD, MLP)), trainer, 2.0)
    assert [(t.verdict, t.drop) for t in trials] == [("kept", 1.0), ("kept", 1.5)]
    assert trainer.started == [weights, str(tmp_path / "step1" / FINAL_FILE)]
    assert widths(tmp_path / "step2") == {FC1: 24, MLP1: 96}
    assert trials[1].params < trials[0].params


def test_the_largest_amount_that_training_makes_good_is_kept(weights, tmp_path):
    trainer = judged(step1=37.9, step2=38.0, step3=40.0)
    cfg = run_cfg(weights, tmp_path, PRUNING__CRITERION="magnitude", PRUNING__ROUND_TO=1)
    trials = largest_kept(cfg, [0.2, 0.4, 0.3], trainer, 2.0)
    assert [(t.step, t.verdict) for t in trials] == [("−40%", "rolled back"), ("−30%", "kept")]
    assert trainer.started == [weights, weights], "each starts from the baseline"
    assert trials[0].params < trials[1].params


@pytest.mark.parametrize("alone, verdict", [(False, "rolled back"), (True, "kept")])
def test_what_is_rolled_back_is_not(weights, tmp_path, alone, verdict):
    trainer = judged(step1=37.0 if not alone else 39.0, step2=38.5)
    trials = ablate(run_cfg(weights, tmp_path), Recipe("p", (HEAD, MLP)), trainer, 2.0, alone)
    assert [t.verdict for t in trials] == [verdict, "kept"]
    assert trainer.started == [weights, weights] and widths(tmp_path / "step2") == {MLP1: 96}
    table = ablation_table(trials)
    assert "38.5" in table and f"is in {trials[1].folder}" in table


@pytest.mark.parametrize("allow, tried", [(False, 1), (True, 2)])
def test_a_step_that_is_not_exact_is_tried_only_where_that_is_allowed(weights, tmp_path, allow, tried):
    trainer = judged(step1=39.0, step2=39.0)
    cfg = run_cfg(weights, tmp_path, PRUNING__ALLOW_INEXACT=allow)
    trials = ablate(cfg, Recipe("p", (GATE, HEAD)), trainer, 2.0)
    assert len(trainer.started) == tried and trials[1].verdict == "kept"
    assert allow or ("not tried" in trials[0].verdict and "mixed by" in ablation_table(trials))


def test_without_a_baseline_or_an_evaluation_it_is_refused(weights, tmp_path):
    with pytest.raises(PruneError, match="needs MODEL.WEIGHTS"):
        ablate(run_cfg("", tmp_path), Recipe("p", (HEAD,)), judged(), 2.0)
    with pytest.raises(PruneError, match="no AP to judge by"):
        ablate(run_cfg(weights, tmp_path), Recipe("p", (HEAD,)), judged(step1=None), 2.0)


def test_with_the_trainer_of_train_net(data, weights, tmp_path):
    """Two iterations: nothing is learnt, but every part of the pipeline is run."""
    cfg = run_cfg(weights, tmp_path)
    (trial,) = ablate(cfg, Recipe("p", (HEAD,)), train_net().Trainer, allowed=100.0)
    assert trial.verdict == "kept" and trial.tuned.keys() == {"box_ap"}
    assert widths(tmp_path / "step1") == {FC1: 24} and (tmp_path / "step1" / "pruned.yaml").is_file()
