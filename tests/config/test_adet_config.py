"""AdelaiDet's keys: complete, added once, and never shared between configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg as detectron2_cfg

from d2prune.config import add_adet_config, get_cfg

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_adding_twice_changes_nothing():
    cfg = get_cfg()
    before = cfg.dump()
    add_adet_config(cfg)
    assert cfg.dump() == before


def test_keys_that_are_there_keep_their_values():
    cfg = get_cfg()
    cfg.MODEL.FCOS.NUM_CLASSES = 3
    del cfg.MODEL.FCOS["NMS_TH"]
    add_adet_config(cfg)
    assert cfg.MODEL.FCOS.NUM_CLASSES == 3 and cfg.MODEL.FCOS.NMS_TH == 0.6


def test_configurations_share_nothing():
    one, two = get_cfg(), get_cfg()
    one.MODEL.FCOS.FPN_STRIDES.append(256)
    assert two.MODEL.FCOS.FPN_STRIDES == [8, 16, 32, 64, 128]
    assert two.MODEL.MEInst.FPN_STRIDES == get_cfg().MODEL.MEInst.FPN_STRIDES


def test_detectron2s_defaults_stay_untouched():
    get_cfg()
    assert "FCOS" not in detectron2_cfg().MODEL
    theirs, ours = dict(leaves(detectron2_cfg())), dict(leaves(get_cfg()))
    del theirs["MODEL.DEVICE"]  # ours is one that this machine has
    assert {k: ours[k] for k in theirs} == theirs


def test_the_default_device_exists():
    torch.empty(1, device=get_cfg().MODEL.DEVICE)


@pytest.mark.parametrize("variant", ["a_blendmask_base", "d_fcos_onestage"])
def test_every_recorded_key_is_there_with_its_type(variant):
    file = PARITY / variant / "cfg_full.yaml"
    if not file.is_file():
        pytest.skip("the reference fixtures are not beside this checkout (../shared)")
    recorded = yaml.safe_load(file.read_text())
    cfg = get_cfg()
    cfg.merge_from_list([x for pair in leaves(recorded) for x in pair])
    plain = get_cfg()
    assert {k for k, _ in leaves(recorded)} <= {k for k, _ in leaves(plain)}
    # The architectures that the variants do not configure are at their defaults.
    for name in ("BATEXT", "MEInst", "CONDINST", "BOXINST", "SOLOV2", "FCPOSE", "BiFPN", "VOVNET"):
        untupled = yaml.safe_load(yaml.safe_dump(recorded["MODEL"][name]))
        assert dict(leaves(untupled)) == {k: as_list(v) for k, v in leaves(plain.MODEL[name])}, name


def as_list(value):
    return [as_list(v) for v in value] if isinstance(value, (list, tuple)) else value
