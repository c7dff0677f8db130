"""Numbers recorded from AdelaiDet: losses, gradients, detections, targets, blends."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model

import d2prune.modeling  # noqa: F401
from d2prune.config import get_cfg

VARIANTS = ("a_blendmask_base", "d_fcos_onestage")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_comparison_passes(shared, variant):
    script = str(shared / "parity" / "compare.py")
    args = ["--setup", "d2prune.config:get_cfg", "--import", "d2prune.modeling", "--", variant]
    result = subprocess.run([sys.executable, script, *args], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith(f"ok   {variant}")


def merge_known(cfg, values):
    for key, value in values.items():
        if isinstance(value, dict):
            merge_known(cfg[key], value)
        elif key in cfg:
            cfg[key] = value


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets_are_adelaidets(shared, variant):
    folder = shared / "parity" / variant
    cfg = get_cfg()
    merge_known(cfg, yaml.safe_load((folder / "cfg_full.yaml").read_text()))
    model = build_model(cfg).train()
    seen = []
    assign = model.proposal_generator.assign
    fixture = load(shared / "parity" / "fixture_common.py")
    model.proposal_generator.register_forward_hook(lambda *args: seen.append(args[2][0]))
    batch = fixture.train_batch(basis=True)
    model(batch)
    found, recorded = seen[0]["instances"], np.load(folder / "train.npz")
    for name, value in (
        ("pos_inds", found.pos_inds),
        ("gt_ctrs", found.gt_ctrs),
        ("loss_denorm", seen[0]["loss_denorm"].double()),
    ):
        expected = torch.as_tensor(recorded[f"targets/{name}"])
        torch.testing.assert_close(value, expected.reshape(value.shape))
    everything = assign(grid(assign.strides, (192, 256)), [b["instances"] for b in batch])
    for name, value in (
        ("labels", everything.labels),
        ("gt_inds", everything.gt_inds),
        ("im_inds", everything.image_inds),
        ("fpn_levels", everything.levels),
        ("locations", everything.locations),
        ("reg_targets", everything.distances),
    ):
        torch.testing.assert_close(value, torch.as_tensor(recorded[f"targets/{name}"]))


def grid(strides, size):
    from d2prune.modeling.fcos.targets import locations_on_grid

    maps = [torch.zeros(1, 1, -(-size[0] // s), -(-size[1] // s)) for s in strides]
    return [locations_on_grid(m, s) for m, s in zip(maps, strides, strict=True)]


def test_blends_are_adelaidets(shared):
    from d2prune.modeling.blendmask import Blender

    recorded = np.load(shared / "parity" / "a_blendmask_base" / "blend.npz")
    rois, top, logits = (torch.as_tensor(recorded[f"blend/{k}"]) for k in ("rois8", "top_feat8", "logits8"))
    torch.testing.assert_close(Blender(get_cfg()).blend(rois, top).flatten(1), logits)
