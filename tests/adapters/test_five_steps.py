"""CONTRIBUTING's "add an adapter in five steps", followed as written in a package outside of d2prune."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model

import d2prune
from d2prune.adapters import base
from d2prune.core.layers import table
from tests.adapters.families import SIZE, lively, stands, trains
from tests.modeling.small_models import small_cfg

PACKAGE = Path(__file__).parent / "user_package"
CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
LINES = 60  # what an adapter may take


@pytest.fixture(scope="module", autouse=True)
def my_package():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_ADAPTERS", dict(base._ADAPTERS))
        patch.setattr(table, "ROWS", dict(table.ROWS))
        patch.syspath_prepend(PACKAGE)
        importlib.import_module("my_package.adapter")
        yield


ONE_LEVEL = (
    "MODEL.FPN.IN_FEATURES", ["res3"],
    "MODEL.RESNETS.OUT_FEATURES", ["res3"],
    "MODEL.FCOS.TOP_LEVELS", 0,
)  # fmt: skip


def make(auxiliary=True):
    return lively(build_model(small_cfg(*ONE_LEVEL, "MODEL.MASK_ON", auxiliary, arch="MyMetaArch")))


def items():
    return [{"image": torch.rand(3, 64, 96) * 255} for _ in range(2)]


def test_the_adapter_stands_its_test(tmp_path):
    result = stands(make, tmp_path, items(), amount=0.5)
    assert set(result.proof.compared) == {"scores", "closer", "auxiliary"}
    assert result.model.width == result.model.tower[0].out_channels < 32
    first, last = result.model.closer[0], result.model.closer[2]
    assert first.kernel.shape == (16 * result.model.backbone.fpn_output3.out_channels, first.outputs)
    assert last.kernel.shape == (first.outputs, 6)


@pytest.mark.parametrize("before", [True, False])
def test_the_training_branch_may_come_and_go(before):
    result = d2prune.prune(make(before), 0.5, allocation="uniform", input_size=SIZE)
    model = d2prune.rebuild(make(not before), result.spec)
    trains(model, items())


def test_costs_are_those_of_inference():
    with_branch, without = (
        d2prune.prune(make(on), 0.3, input_size=SIZE, verify=False) for on in (True, False)
    )
    assert with_branch.before.macs == without.before.macs


def test_it_is_short_and_in_no_registry_but_its_own():
    text = (PACKAGE / "my_package" / "adapter.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    assert META_ARCH_REGISTRY.get("MyMetaArch").__module__ == "my_package.models"


def test_what_contributing_names_is_there():
    steps = re.search(r"## Add an adapter.*?(?=\n## Changes)", CONTRIBUTING.read_text(encoding="utf-8"), re.S)
    names = re.findall(r"`@?((?:d2prune|images|rois|roi_heads|shapes)\.\w+(?:\.\w+)*)", steps.group())
    assert len(names) >= 8
    for name in names:
        home, *path = name.split(".")
        thing = d2prune if home == "d2prune" else importlib.import_module(f"d2prune.adapters.{home}")
        for attribute in path:
            thing = getattr(thing, attribute)
