"""The whole pipeline by tools/train_net.py: prune, fine-tune, resume, evaluate; and what it leaves behind."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import pytest
import torch
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.engine import DefaultPredictor

import d2prune
from d2prune.checkpoint import build_from_cfg, read_checkpoint, read_spec
from d2prune.errors import PruneError
from d2prune.rebuild import spec_of_model
from tests.each import each
from tests.engine.tiny_runs import command, log_of, run_cfg, train_net, weights_of
from tests.tiny_blendmask import CONFIG, detect, equal, picture, tiny_cfg, tiny_model

FILES = [
    "last_checkpoint", "model_pruned.pth", "model_pruned.safetensors", "pruned.yaml", "pruning_report.html",
    "pruning_report.json", "pruning_spec.json",
]  # fmt: skip


def finetune(folder, weights, *words):
    return command(CONFIG, folder, *words, "MODEL.FINETUNE", "True", "MODEL.WEIGHTS", str(weights))


@pytest.fixture(scope="module")
def tuned(pruned, tmp_path_factory):
    """What PRUNE then FINETUNE leave in one OUTPUT_DIR that held the baseline's model_final.pth."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    shutil.copytree(pruned, folder)
    torch.save({"model": tiny_model().state_dict()}, folder / "model_final.pth")
    finetune(folder, folder / "model_pruned.pth")
    return folder


def report_of(folder):
    return json.loads((folder / "pruning_report.json").read_text())


def yaml_cfg(folder):
    cfg = d2prune.get_cfg()
    cfg.merge_from_file(str(folder / "pruned.yaml"))
    return cfg


def test_the_contracts_files_are_there_and_read(pruned):
    assert set(FILES) <= {file.name for file in pruned.iterdir()}
    data = read_checkpoint(pruned / "model_pruned.pth")
    spec = d2prune.PruneSpec.from_json((pruned / "pruning_spec.json").read_text())
    assert read_spec(pruned / "model_pruned.pth") == spec and data["iteration"] == 0
    assert data["prune_spec"] == spec.to_dict() and spec.written_by["torch"] == torch.__version__
    assert (pruned / "last_checkpoint").read_text() == "model_pruned.pth"
    shared = read_checkpoint(pruned / "model_pruned.safetensors")
    assert shared["prune_spec"] == data["prune_spec"] and equal(shared["model"], data["model"])
    struct = torch.load(pruned / "model_pruned.pth", weights_only=False)["struct"]
    assert spec_of_model(struct) == spec
    assert (pruned / "pruning_report.html").read_text().lstrip().lower().startswith("<!doctype html")


def test_the_report_tells_the_prune(pruned):
    report = report_of(pruned)
    assert report["proof"]["exact"] and report["proof"]["error"] <= 1e-9
    assert report["proof"]["control_error"] > 1e-6
    found = report["detections"]
    assert found["images"] > 0 and found["masked"] == found["pruned"] == found["matched"]
    removed = 1 - report["after"]["macs"] / report["before"]["macs"]
    assert abs(removed - 0.5) < 0.01, "AMOUNT is hit within a percentage point"
    assert report["coverage"] and {row["status"] for row in report["coverage"]} <= {
        "pruned", "protected", "skipped",
    }  # fmt: skip
    assert [stage["name"] for stage in report["stages"]] == ["baseline", "pruned"]
    assert all(0 <= stage["box_ap"] <= 100 for stage in each(report["stages"]))


def test_pruned_yaml_builds_and_loads_the_pruned_model(pruned):
    cfg = yaml_cfg(pruned)
    assert cfg.MODEL.META_ARCHITECTURE == "PrunedModel" and cfg.MODEL.PRUNING.BASE == "BlendMask"
    by_file = build_from_cfg(tiny_cfg("MODEL.WEIGHTS", str(pruned / "model_pruned.pth")))
    assert equal(detect(build_from_cfg(cfg)), detect(by_file))


def test_pruned_stock_yaml_needs_detectron2s_own_config_only(pruned):
    cfg = detectron2_cfg()
    cfg.merge_from_file(str(pruned / "pruned_stock.yaml"))
    found = DefaultPredictor(cfg)(picture())["instances"].get_fields()
    stock = {name: getattr(value, "tensor", value).cpu() for name, value in found.items()}
    assert equal(stock, detect(build_from_cfg(yaml_cfg(pruned))))


def test_the_log_ends_with_the_verdict_and_the_next_command(pruned):
    log = log_of(pruned)
    end = log[log.index("Report: ") :]
    assert re.search(r"50\.\d% of the MACs", end) and "proved exact" in end and "mask AP" in end
    words = shlex.split(end.rstrip().splitlines()[-1])
    assert words[0] == "python"
    assert words[-4:] == ["MODEL.FINETUNE", "True", "MODEL.WEIGHTS", str(pruned / "model_pruned.pth")]


def test_no_training_happens_with_prune_alone(pruned, baseline):
    assert not (pruned / "metrics.json").exists() and not (pruned / "model_final.pth").exists()
    names = set(weights_of(baseline))
    assert set(weights_of(pruned / "model_pruned.pth")) == names, "Detectron2's names are kept"


def test_finetuning_trains_and_writes_as_usual(tuned):
    final, start = weights_of(tuned / "model_final.pth"), weights_of(tuned / "model_pruned.pth")
    assert final.keys() == start.keys() and not equal(final, start)
    assert {k: v.shape for k, v in final.items()} == {k: v.shape for k, v in start.items()}
    assert read_spec(tuned / "model_final.pth") == read_spec(tuned / "model_pruned.pth")
    metrics = [json.loads(line) for line in (tuned / "metrics.json").read_text().splitlines()]
    assert any("total_loss" in row for row in metrics)
    assert list(tuned.glob("events.out.tfevents.*"))
    assert (tuned / "last_checkpoint").read_text() == "model_final.pth"


def test_the_file_to_share_serves_as_well(tuned, pruned, tmp_path):
    shared, own = (read_checkpoint(tuned / f"model_final.{kind}") for kind in ("safetensors", "pth"))
    assert equal(shared["model"], own["model"]) and shared["prune_spec"] == own["prune_spec"]
    folder = tmp_path / "run"
    shutil.copytree(pruned, folder)
    finetune(folder, folder / "model_pruned.safetensors", "DATASETS.TEST", "()")
    assert equal(weights_of(folder / "model_final.pth"), own["model"]), "the same start, the same end"


def test_finetuning_adds_its_row_and_takes_pruned_yaml_over(tuned):
    stages = report_of(tuned)["stages"]
    assert [stage["name"] for stage in stages] == ["baseline", "pruned", "fine-tuned"]
    assert stages[2]["iterations"] == 2 and stages[2]["macs"] == stages[1]["macs"]
    cfg = yaml_cfg(tuned)
    assert cfg.MODEL.WEIGHTS == str(tuned / "model_final.pth")
    by_file = build_from_cfg(tiny_cfg("MODEL.WEIGHTS", str(tuned / "model_final.pth")))
    assert equal(detect(build_from_cfg(cfg)), detect(by_file))


def test_the_baseline_is_set_aside_and_not_lost(tuned, baseline):
    assert equal(weights_of(tuned / "model_final_unpruned.pth"), weights_of(baseline))


def test_finetuning_prints_its_defaults(tuned):
    log = log_of(tuned)
    assert "2 iterations of 2 images" in log and "learning rate" in log and "BatchNorms train" in log


def test_evaluation_by_pruned_yaml_needs_no_flag(tuned, tmp_path):
    results = command(tuned / "pruned.yaml", tmp_path, "--eval-only")
    row = report_of(tuned)["stages"][2]
    assert results["bbox"]["AP"] == pytest.approx(row["box_ap"], nan_ok=True)
    assert not (tmp_path / "model_final.pth").exists()


def test_evaluation_by_the_base_config_and_a_pruned_file(tuned, tmp_path):
    words = ("--eval-only", "MODEL.WEIGHTS", str(tuned / "model_pruned.pth"))
    results = command(CONFIG, tmp_path, *words)
    assert results["bbox"]["AP"] == pytest.approx(report_of(tuned)["stages"][1]["box_ap"], nan_ok=True)


def test_a_second_finetuning_is_refused_and_changes_nothing(tuned):
    before = {file.name: file.read_bytes() for file in tuned.glob("*.pth")}
    with pytest.raises(PruneError, match=r"holds another run \(model_final.pth\); pass --resume"):
        finetune(tuned, tuned / "model_pruned.pth")
    assert {file.name: file.read_bytes() for file in tuned.glob("*.pth")} == before


def test_a_runs_own_result_is_no_start_for_another(tuned):
    before = (tuned / "model_final.pth").read_bytes()
    with pytest.raises(PruneError, match=r"holds another run \(model_final.pth\); pass --resume"):
        finetune(tuned, tuned / "model_final.pth")
    assert (tuned / "model_final.pth").read_bytes() == before


def test_resume_by_pruned_yaml_continues_too(tuned, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tuned, folder)
    words = ("--resume", "MODEL.FINETUNE", "True", "SOLVER.MAX_ITER", "3", "DATASETS.TEST", "()")
    weights = ("MODEL.WEIGHTS", str(folder / "model_final.pth"))
    command(tuned / "pruned.yaml", folder, *words, *weights)
    assert read_checkpoint(folder / "model_final.pth")["iteration"] == 2
    assert "Starting training from iteration 2" in log_of(folder)


def test_a_second_prune_does_not_cost_the_first_ones_result(tuned, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tuned, folder)
    before = {file: file.read_bytes() for file in (*folder.glob("*.pth"), *folder.glob("prun*"))}
    weights = ("MODEL.WEIGHTS", str(folder / "model_final_unpruned.pth"), "DATASETS.TEST", "()")
    with pytest.raises(PruneError, match="holds another run's result .model_final.pth"):
        command(CONFIG, folder, "MODEL.PRUNE", "True", *weights)
    assert {file: file.read_bytes() for file in before} == before


def test_resume_continues_from_the_iteration_and_never_prunes_again(tuned, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tuned, folder)
    pruned_before = (folder / "model_pruned.pth").read_bytes()
    words = ("MODEL.PRUNE", "True", "MODEL.FINETUNE", "True", "SOLVER.MAX_ITER", "3")
    weights = ("MODEL.WEIGHTS", str(folder / "model_final_unpruned.pth"))
    command(CONFIG, folder, "--resume", *words, *weights)
    assert (folder / "model_pruned.pth").read_bytes() == pruned_before
    assert "Starting training from iteration 2" in log_of(folder)
    assert read_checkpoint(folder / "model_final.pth")["iteration"] == 2
    assert report_of(folder)["stages"][2]["iterations"] == 3


def test_resume_of_prune_alone_keeps_the_prune(pruned, baseline, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(pruned, folder)
    before = (folder / "model_pruned.pth").stat().st_mtime_ns
    words = ("MODEL.PRUNE", "True", "MODEL.WEIGHTS", str(baseline))
    command(CONFIG, folder, "--resume", *words)
    assert (folder / "model_pruned.pth").stat().st_mtime_ns == before


def test_weights_that_do_not_cover_the_model_are_not_pruned(data, baseline, tmp_path):
    weights = weights_of(baseline)
    lost = [name for name in weights if name.startswith("proposal_generator.fcos_head.cls_logits")]
    wrong = tmp_path / "wrong.pth"
    torch.save({"model": {k: v for k, v in weights.items() if k not in lost}}, wrong)
    words = ("MODEL.PRUNE", "True", "MODEL.WEIGHTS", str(wrong))
    refusal = rf"does not cover the BlendMask .*: {len(lost)} of .*; the first: {lost[0]}"
    with pytest.raises(PruneError, match=refusal):
        command(CONFIG, tmp_path / "run", *words)
    assert lost and not (tmp_path / "run" / "model_pruned.pth").exists()
    command(CONFIG, tmp_path / "run", *words, "MODEL.PRUNING.ALLOW_MISSING", "['*.cls_logits.*']")
    assert (tmp_path / "run" / "model_pruned.pth").exists()


def test_prune_and_finetune_in_one_command(data, baseline, tmp_path):
    words = ("MODEL.PRUNE", "True", "MODEL.PRUNING.TARGET", "params", "MODEL.PRUNING.SAVE_STRUCT", "False")
    finetune(tmp_path, baseline, *words)
    report = report_of(tmp_path)
    assert [stage["name"] for stage in report["stages"]] == ["baseline", "pruned", "fine-tuned"]
    assert abs(1 - report["after"]["params"] / report["before"]["params"] - 0.5) < 0.01
    for name in ("model_pruned.pth", "model_final.pth"):
        assert "struct" not in torch.load(tmp_path / name, weights_only=False)
        assert read_spec(tmp_path / name) is not None


def test_an_old_prune_is_not_passed_off_as_the_one_asked_for(pruned, baseline, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(pruned, folder)
    words = ("MODEL.PRUNE", "True", "MODEL.PRUNING.AMOUNT", "0.2")
    with pytest.raises(PruneError, match=r"pruned with MODEL.PRUNING.AMOUNT 0.5, and .* is 0.2 now"):
        finetune(folder, baseline, *words)
    assert (folder / "model_pruned.pth").read_bytes() == (pruned / "model_pruned.pth").read_bytes()
    assert not (folder / "model_final.pth").exists()


def test_pruned_yaml_can_be_finetuned_and_pruned_again(tuned, tmp_path):
    command(tuned / "pruned.yaml", tmp_path / "a", "MODEL.FINETUNE", "True", "SOLVER.MAX_ITER", "1")
    assert read_spec(tmp_path / "a" / "model_final.pth") == read_spec(tuned / "model_final.pth")
    command(tmp_path / "a" / "pruned.yaml", tmp_path / "b", "MODEL.PRUNE", "True")
    again = build_from_cfg(yaml_cfg(tmp_path / "b"))
    assert report_of(tmp_path / "b")["before"]["macs"] == report_of(tuned)["after"]["macs"]
    assert yaml_cfg(tmp_path / "b").MODEL.PRUNING.BASE == "BlendMask" and detect(again)


def test_pruned_yaml_can_be_pruned_and_finetuned_at_once(tuned, tmp_path):
    modes = ("MODEL.PRUNE", "True", "MODEL.FINETUNE", "True", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()")
    command(tuned / "pruned.yaml", tmp_path, *modes, "MODEL.PRUNING.AMOUNT", "0.2")
    assert read_spec(tmp_path / "model_final.pth") == read_spec(tmp_path / "model_pruned.pth")
    assert read_spec(tmp_path / "model_final.pth") != read_spec(tuned / "model_final.pth")


def test_without_the_modes_a_pruned_file_is_recognised(pruned, tmp_path):
    cfg = run_cfg(tmp_path, "MODEL.WEIGHTS", str(pruned / "model_pruned.pth"))
    trainer = train_net().Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.model.prune_spec == read_spec(pruned / "model_pruned.pth")


def test_without_an_evaluator_there_is_no_ap_and_it_says_so(data, baseline, tmp_path, heard):
    cfg = run_cfg(tmp_path, "MODEL.PRUNE", True, "MODEL.WEIGHTS", str(baseline), "DATASETS.TEST", ())
    assert not d2prune.PruneTrainer(cfg).train()
    assert set(FILES) <= {file.name for file in tmp_path.iterdir()}
    assert all(stage["box_ap"] is None for stage in each(report_of(tmp_path)["stages"]))
    assert "not evaluated" in heard.text and "proved exact" in heard.text
    cfg = run_cfg(tmp_path / "b", "MODEL.PRUNE", True, "MODEL.WEIGHTS", str(baseline))
    d2prune.PruneTrainer(cfg).train()
    assert all(stage["box_ap"] is None for stage in each(report_of(tmp_path / "b")["stages"]))


def test_a_prune_for_latency_says_what_was_predicted_and_measured(baseline, data, tmp_path):
    table = tmp_path / "table.json"
    words = ("MODEL.PRUNE", "True", "MODEL.WEIGHTS", str(baseline), "MODEL.PRUNING.TARGET", "latency")
    quick = ("MODEL.PRUNING.CALIBRATION_IMAGES", "0", "MODEL.PRUNING.AMOUNT", "0.2", "DATASETS.TEST", "()")
    command(CONFIG, tmp_path / "run", *words, *quick, "MODEL.PRUNING.LATENCY_TABLE", str(table))
    report = json.loads((tmp_path / "run" / "pruning_report.json").read_text())
    assert report["latency"]["before"] > 0 and 0 < report["latency"]["predicted"] < 1
    assert report["request"]["target"] == "latency" and report["reached"] == pytest.approx(0.2, abs=0.05)
    assert "was predicted)" in log_of(tmp_path / "run") and json.loads(table.read_text())["whole"] > 0


def test_a_budget_in_macs_is_kept(baseline, data, tmp_path):
    words = ("MODEL.PRUNE", "True", "MODEL.WEIGHTS", str(baseline), "DATASETS.TEST", "()")
    quick = ("MODEL.PRUNING.CALIBRATION_IMAGES", "0", "MODEL.PRUNING.RATIOS", "[]")
    command(CONFIG, tmp_path, *words, *quick, "MODEL.PRUNING.BUDGET", "5 MMACs")
    assert 4e6 < report_of(tmp_path)["after"]["macs"] <= 5e6 < report_of(tmp_path)["before"]["macs"]
