"""torchrun and --num-gpus, on CPUs: each step is taken once by all, and a lone start is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from detectron2.engine import defaults
from detectron2.utils import comm

import d2prune
from d2prune.engine import ranks
from d2prune.errors import PruneError
from tests.each import each
from tests.engine.tiny_runs import ROOT, TRAINING, pairs_of, run_cfg, train_net, weights_of
from tests.tiny_blendmask import CONFIG, TINY, tiny_model, tiny_prune

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_processes_without_a_group_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PruneError, match="WORLD_SIZE is 2 but there is no process group: start with"):
        train_net().Trainer(run_cfg(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "1")
    ranks.check_group()


def test_a_rank_that_works_alone_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    assert comm.get_world_size() == 2
    with ranks.alone():
        assert comm.get_world_size() == 1
    assert comm.get_world_size() == 2


def test_two_ways_to_start_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(PruneError, match="torchrun starts the processes, and --num-gpus is 2"):
        ranks.run_on_ranks(print, Namespace(num_gpus=2, num_machines=1))


@pytest.mark.parametrize(("device", "expected"), [("cpu", {"device_ids": None}), ("cuda", {})])
def test_only_a_gpu_is_named_to_ddp(device, expected, monkeypatch):
    monkeypatch.setattr(defaults, "create_ddp_model", lambda model, **given: given)
    given = defaults.create_ddp_model
    with ranks.ddp_on(device):
        assert defaults.create_ddp_model(None) == expected
    assert defaults.create_ddp_model is given


def run(start, data, folder, *words, flags=()):
    options = {**TINY, **TRAINING, "MODEL.DEVICE": "cpu", "OUTPUT_DIR": str(folder)}
    opts = [str(x) for x in (*pairs_of(options), "MODEL.PRUNE", "True", *words)]
    script, config = str(ROOT / "tools" / "train_net.py"), str(CONFIG)
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TINY_DATA": str(data)}
    return subprocess.run(
        [*start, script, "--config-file", config, "--import", "tests.engine.registered", *flags, *opts],
        capture_output=True, text=True, timeout=400, cwd=ROOT,
        env={**os.environ, **alone, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("start", "flags"),
    [(TORCHRUN, ()), pytest.param([sys.executable], ("--num-gpus", "2"), marks=pytest.mark.slow)],
)
def test_two_processes_prune_and_finetune_together(data, baseline, tmp_path, start, flags):
    folder = tmp_path / "run"
    done = run(start, data, folder, "MODEL.FINETUNE", "True", "MODEL.WEIGHTS", str(baseline), flags=flags)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads((folder / "pruning_report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["baseline", "pruned", "fine-tuned"]
    assert report["proof"]["exact"] and (folder / "log.txt.rank1").is_file()
    weights = torch.load(folder / "model_final.pth", weights_only=False)["model"]
    assert all(value.isfinite().all() for value in each(weights.values()))


def test_two_processes_train_as_one_with_the_doubled_batch(data, tmp_path):
    """With norms that count over all processes: Detectron2's on CPUs, SyncBN on GPUs."""
    norms = (
        "MODEL.RESNETS.NORM", "naiveSyncBN", "MODEL.BASIS_MODULE.NORM", "naiveSyncBN",
        "MODEL.BASIS_MODULE.LOSS_ON", False,  # its branch has plain BatchNorms, as AdelaiDet's
    )  # fmt: skip
    weights = tmp_path / "pruned.pth"
    d2prune.save(tiny_prune(tiny_model(*norms, "MODEL.DEVICE", "cpu")), weights)
    words = (
        *norms, "MODEL.PRUNE", "False", "MODEL.FINETUNE", "True", "MODEL.WEIGHTS", str(weights), "SEED", "5",
        "INPUT.RANDOM_FLIP", "none", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "2",
        "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.002",
    )  # fmt: skip
    ends = []
    for name, start in (("one", [sys.executable]), ("two", TORCHRUN)):
        done = run(start, data, tmp_path / name, *words)
        assert done.returncode == 0, done.stderr[-4000:]
        last = json.loads((tmp_path / name / "metrics.json").read_text().splitlines()[-1])
        ends.append((last, weights_of(tmp_path / name / "model_final.pth")))
    (one, one_weights), (two, two_weights) = ends
    losses = {key for key in one if "loss" in key}
    assert {key: one[key] for key in losses} == pytest.approx({key: two[key] for key in losses}, rel=1e-5)
    begin = weights_of(weights)
    trained = {name for name in begin if name.endswith((".weight", ".bias"))}
    moved = max((one_weights[name] - begin[name]).abs().max() for name in each(trained))
    apart = max((one_weights[name] - two_weights[name]).abs().max() for name in trained)
    assert moved > 0 and apart <= 1e-2 * moved


@pytest.mark.slow
@pytest.mark.parametrize(("start", "flags"), [(TORCHRUN, ()), ([sys.executable], ("--num-gpus", "2"))])
def test_an_error_of_all_ranks_is_said_once(data, baseline, tmp_path, start, flags):
    words = ("MODEL.WEIGHTS", str(baseline), "MODEL.PRUNING.AMOUNT", "1.5")
    done = run(start, data, tmp_path / "run", *words, flags=flags)
    assert done.returncode != 0
    assert done.stderr.count("train_net: MODEL.PRUNING.AMOUNT is 1.5") == 1
