"""The pipeline by tools/lazyconfig_train_net.py, and what it leaves behind."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_argument_parser

import d2prune
from d2prune.checkpoint import read_checkpoint, read_spec
from d2prune.config import get_cfg
from d2prune.errors import PruneError
from d2prune.lazy.config import read_lazy_config
from d2prune.lazy.config_format import LazyFormat
from d2prune.lazy.run import main
from d2prune.report.record import average_precision
from tests.adapters.families import lively
from tests.each import each
from tests.engine.tiny_runs import ROOT, log_of, loggers_put_back, weights_of
from tests.tiny_blendmask import equal

CONFIG = Path(__file__).with_name("tiny_lazy.py")
QUICK = "dataloader.evaluator=null"  # no AP, timings or images either
FILES = {
    "last_checkpoint", "model_pruned.pth", "pruned.yaml", "pruning_report.html",
    "pruning_report.json", "pruning_spec.json",
}  # fmt: skip


def lazy(config, output, *words):
    """Runs the tool's main in this process, with its own arguments."""
    flags = [word for word in words if word.startswith("--")]
    opts = [f"train.output_dir={output}", *(word for word in words if word not in flags)]
    args = default_argument_parser().parse_args(["--config-file", str(config), *flags, *opts])
    args.imports = []
    with loggers_put_back():
        return main(args)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A file as Detectron2 writes one, of a model whose channels differ."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("base") / "model_final.pth"
    model = lively(instantiate(LazyConfig.load(str(CONFIG)).model))
    torch.save({"model": model.state_dict(), "iteration": 9}, path)
    return path


@pytest.fixture(scope="module")
def pruned_run(data, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lazy") / "run"
    lazy(CONFIG, folder, "prune.enabled=True", f"train.init_checkpoint={base}")
    return folder


@pytest.fixture(scope="module")
def tuned_run(pruned_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    shutil.copytree(pruned_run, folder)
    weights = f"train.init_checkpoint={folder / 'model_pruned.pth'}"
    results = lazy(CONFIG, folder, "prune.finetune=True", weights)
    assert "bbox" in results
    return folder


def report_of(folder):
    return json.loads((folder / "pruning_report.json").read_text())


def test_the_contracts_files_are_there(pruned_run):
    assert {file.name for file in pruned_run.iterdir()} >= FILES
    report = report_of(pruned_run)
    assert report["proof"]["exact"] and abs(report["reached"] - 0.4) < 0.01
    assert report["input_size"] == [64, 64], "the test size of the data loader"
    assert [row["name"] for row in report["stages"]] == ["baseline", "pruned"]
    assert all(row["latency_ms"] and 0 <= row["box_ap"] <= 100 for row in each(report["stages"]))
    assert not (pruned_run / "metrics.json").exists()


def test_the_log_ends_with_the_next_command(pruned_run):
    last = log_of(pruned_run).rstrip().splitlines()[-1].split()
    weights = f"train.init_checkpoint={pruned_run / 'model_pruned.pth'}"
    assert last[-3:] == ["prune.enabled=False", "prune.finetune=True", weights]


def test_a_zoos_pickle_is_pruned_like_the_same_weights_elsewhere(pruned_run, base, tmp_path):
    weights = {name: tensor.numpy() for name, tensor in weights_of(base).items()}
    content = {"model": weights, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    words = (QUICK, "prune.enabled=True", "prune.verify=False", f"train.init_checkpoint={tmp_path / 'x.pkl'}")
    lazy(CONFIG, tmp_path / "run", *words)
    assert equal(*(weights_of(folder / "model_pruned.pth") for folder in (tmp_path / "run", pruned_run)))
    assert report_of(tmp_path / "run")["proof"] is None


LAMBDA = """
import torch
model.backbone.norm = lambda channels: torch.nn.GroupNorm(4, channels)
"""
OWN_CLASS = """
from detectron2.modeling import GeneralizedRCNN
class Own(GeneralizedRCNN):
    pass
model._target_ = Own
"""


@pytest.fixture(scope="module")
def odd_run(data, base, tmp_path_factory):
    """A prune by a config that YAML can't hold."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd.py").write_text(CONFIG.read_text() + LAMBDA)
    words = (QUICK, "prune.enabled=True", "prune.verify=False", f"train.init_checkpoint={base}")
    words += ("prune.allow_missing=['*.norm.*']",)  # the norms that the config adds
    lazy(folder / "odd.py", folder, *words, "model.roi_heads.box_predictor.test_topk_per_image=7")
    return folder


FRESH = """
import sys, torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
import d2prune
for path in sys.argv[1:]:
    config = LazyConfig.load(path)
    model = instantiate(config.model)
    DetectionCheckpointer(model).load(config.train.init_checkpoint)
    torch.save(model.state_dict(), path + ".pth")
    assert config.prune.enabled is False and model.prune_spec is not None
"""


def test_pruned_configs_build_the_pruned_model_in_a_fresh_process(pruned_run, odd_run):
    """With Detectron2's own functions."""
    files = [pruned_run / "pruned.yaml", odd_run / "pruned.py"]
    path = [str(ROOT), *(path for path in sys.path if path.startswith(str(ROOT / "tests")))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", FRESH, *files], check=True, env=environment)
    for file in files:
        assert equal(torch.load(f"{file}.pth"), weights_of(file.with_name("model_pruned.pth")))


def test_pruned_py_does_not_come_to_build_on_itself(odd_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(odd_run, folder)
    assert not (folder / "pruned.yaml").exists()
    words = (QUICK, "prune.finetune=True", "train.max_iter=1")
    lazy(folder / "pruned.py", folder, *words, f"train.init_checkpoint={folder / 'model_pruned.pth'}")
    again = LazyConfig.load(str(folder / "pruned.py"))
    assert again.train.init_checkpoint == str(folder / "model_final.pth")
    assert again.pruned_from.file == str(odd_run / "odd.py")
    assert again.model.roi_heads.box_predictor.test_topk_per_image == 7


def test_a_class_of_the_configs_own_file_needs_python_too(tmp_path):
    (tmp_path / "own.py").write_text(CONFIG.read_text() + OWN_CLASS)
    config = read_lazy_config(str(tmp_path / "own.py"))
    file = LazyFormat(config, str(tmp_path / "own.py"), [], []).write_pruned(
        get_cfg(), str(tmp_path), "x.pth"
    )
    assert file == str(tmp_path / "pruned.py")
    assert LazyConfig.load(file).model.prune_base.__name__ == "Own"


def test_finetuning_trains_adds_its_row_and_takes_pruned_yaml_over(tuned_run):
    final, start = (weights_of(tuned_run / f"model_{name}.pth") for name in ("final", "pruned"))
    assert {k: v.shape for k, v in start.items()} == {k: final[k].shape for k in start}
    assert not torch.equal(*(w["backbone.bottom_up.stem.conv1.weight"] for w in (final, start)))
    assert not torch.equal(*(w["backbone.bottom_up.stem.conv1.norm.running_mean"] for w in (final, start)))
    assert "prune.keep_frozen=True keeps them" in log_of(tuned_run)
    stages = report_of(tuned_run)["stages"]
    assert [row["name"] for row in stages] == ["baseline", "pruned", "fine-tuned"]
    assert stages[2]["iterations"] == 2 and stages[2]["macs"] == stages[1]["macs"]
    config = LazyConfig.load(str(tuned_run / "pruned.yaml"))
    assert config.train.init_checkpoint == str(tuned_run / "model_final.pth")
    assert read_spec(tuned_run / "model_final.pth") == instantiate(config.model).prune_spec


def test_frozen_layers_stay_where_that_is_asked_for(pruned_run, tmp_path):
    weights = f"train.init_checkpoint={pruned_run / 'model_pruned.pth'}"
    modes = (QUICK, "prune.finetune=True", "prune.keep_frozen=True", "prune.save_struct=False")
    lazy(CONFIG, tmp_path, weights, *modes)
    final, start = weights_of(tmp_path / "model_final.pth"), weights_of(pruned_run / "model_pruned.pth")
    assert equal(*({k: v for k, v in w.items() if ".stem." in k} for w in (final, start)))
    assert "struct" not in torch.load(tmp_path / "model_final.pth", weights_only=False)


@pytest.mark.parametrize("config", ["base", "pruned"])
def test_evaluation_needs_no_flag(tuned_run, tmp_path, config):
    words = [f"train.init_checkpoint={tuned_run / 'model_final.pth'}"] if config == "base" else []
    results = lazy(CONFIG if words else tuned_run / "pruned.yaml", tmp_path, "--eval-only", *words)
    assert average_precision(results)["bbox"] == pytest.approx(report_of(tuned_run)["stages"][2]["box_ap"])


def test_a_second_finetuning_is_refused_in_the_configs_own_words(tuned_run):
    weights = f"train.init_checkpoint={tuned_run / 'model_pruned.pth'}"
    with pytest.raises(PruneError, match=r"train.output_dir '.*' holds another run .*; pass --resume"):
        lazy(CONFIG, tuned_run, "prune.finetune=True", weights)


def test_resume_continues_and_never_prunes_again(tuned_run, base, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tuned_run, folder)
    before = (folder / "model_pruned.pth").stat().st_mtime_ns
    words = (QUICK, "prune.enabled=True", "prune.finetune=True", "train.max_iter=3")
    lazy(CONFIG, folder, "--resume", *words, f"train.init_checkpoint={base}")
    assert (folder / "model_pruned.pth").stat().st_mtime_ns == before
    assert "Starting training from iteration 2" in log_of(folder)
    assert read_checkpoint(folder / "model_final.pth")["iteration"] == 2
    assert report_of(folder)["stages"][2]["iterations"] == 3


def test_resume_of_prune_alone_keeps_the_prune(pruned_run, base, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(pruned_run, folder)
    before = (folder / "model_pruned.pth").stat().st_mtime_ns
    assert lazy(CONFIG, folder, "--resume", "prune.enabled=True", f"train.init_checkpoint={base}") == {}
    assert (folder / "model_pruned.pth").stat().st_mtime_ns == before


def test_prune_and_finetune_at_once_from_a_pruned_config(tuned_run, tmp_path):
    words = ("prune.enabled=True", "prune.finetune=True", "prune.amount=0.2", "train.max_iter=1")
    assert lazy(tuned_run / "pruned.yaml", tmp_path, QUICK, *words) == {}
    assert report_of(tmp_path)["before"]["macs"] == report_of(tuned_run)["after"]["macs"]
    again = instantiate(LazyConfig.load(str(tmp_path / "pruned.yaml")).model)
    first, second = (read_spec(folder / "model_final.pth") for folder in (tuned_run, tmp_path))
    assert again.prune_spec == second != first


def test_plain_training_trains(data, base, tmp_path):
    lazy(CONFIG, tmp_path, f"train.init_checkpoint={base}", "train.max_iter=1")
    assert not equal(weights_of(tmp_path / "model_final.pth"), weights_of(base))
    assert read_spec(tmp_path / "model_final.pth") is None and not (tmp_path / "pruned.yaml").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune.enabled=True"], "prune.enabled needs train.init_checkpoint"),
        (["prune.finetune=True"], "prune.finetune needs train.init_checkpoint"),
        (["prune.enabled=True", "prune.amount=1.3", "W"], "prune.amount is 1.3; expected a fraction removed"),
        (["prune.enabled=True", "prune.criterion=foo", "W"], "prune.criterion is 'foo'; expected one of"),
        (["prune.enabled=True", "prune.protect=[bakbone.*]", "W"], "prune.protect pattern .* matches no"),
        (["prune.finetune=True", "W"], "holds no pruning spec: prune it first with prune.enabled=True"),
        (["train.device=nowhere"], "train.device is 'nowhere', which is not here"),
    ],
)
def test_errors_name_the_configs_own_keys(data, base, tmp_path, words, message):
    words = [f"train.init_checkpoint={base}" if word == "W" else word for word in words]
    with pytest.raises(PruneError, match=message) as caught:
        lazy(CONFIG, tmp_path, *words)
    assert "MODEL." not in str(caught.value)


def test_the_tool_tells_errors_without_a_traceback(monkeypatch):
    script = str(ROOT / "tools" / "lazyconfig_train_net.py")
    monkeypatch.setattr(sys, "argv", [script, "--config-file", str(CONFIG), "prune.amuont=1"])
    with pytest.raises(SystemExit, match="lazyconfig_train_net: prune.amuont is unknown; expected one of"):
        runpy.run_path(script, run_name="__main__")


def test_a_model_saved_by_hand_evaluates_too(data, base, tmp_path):
    config = LazyConfig.load(str(CONFIG))
    model = instantiate(config.model)
    model.load_state_dict(weights_of(base))
    d2prune.save(d2prune.prune(model, 0.3, input_size=(64, 64), verify=False), tmp_path / "x.pth")
    assert "segm" in lazy(CONFIG, tmp_path, "--eval-only", f"train.init_checkpoint={tmp_path / 'x.pth'}")
