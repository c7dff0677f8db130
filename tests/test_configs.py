"""Every configuration file builds; BlendMask's of AdelaiDet prune by half, exactly, and train on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks

import d2prune
from d2prune.engine.finetuning import prepare
from d2prune.engine.settings import check_modes, request_from_cfg, trace_input_from_cfg
from d2prune.modeling import basis_sem_from_instances
from d2prune.pruning import prune_model
from tests.each import each

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ONE_STAGE = ("BlendMask", "FCOS-Detection")  # the others' configs are tested beside their models
FILES = sorted(
    str(path.relative_to(CONFIGS)) for kind in ONE_STAGE for path in (CONFIGS / kind).rglob("*.yaml")
)
NARROW = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
    "MODEL.FPN.OUT_CHANNELS", 64,
    "MODEL.BASIS_MODULE.CONVS_DIM", 32,
    "MODEL.PRUNING.ROUND_TO", 2,  # narrow layers in steps of 8 channels miss the half by more than 1%
]  # fmt: skip
SLOW = pytest.mark.slow
FULL_WIDTH = [
    pytest.param("BlendMask/R_50_1x.yaml", 35_981_562, marks=SLOW),
    pytest.param("BlendMask/R_101_3x.yaml", None, marks=SLOW),
    pytest.param("BlendMask/550_R_50_3x.yaml", 32_290_810, marks=SLOW),
    pytest.param("BlendMask/RT_R_50_4x_syncbn_shtw.yaml", 31_753_850, marks=SLOW),
    pytest.param("BlendMask/RT_R_50_4x_bn-head_syncbn_shtw.yaml", 31_756_922, marks=SLOW),
    pytest.param("FCOS-Detection/R_50_1x.yaml", None, marks=SLOW),
]
NAMED = [parameters.values[0] for parameters in FULL_WIDTH]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def read(file, *opts):
    cfg = d2prune.get_cfg()
    cfg.merge_from_file(str(CONFIGS / file))
    cfg.MODEL.DEVICE = str(torch.get_default_device())
    cfg.merge_from_list(list(opts))
    return cfg


def item(boxes, size=(96, 128)):
    """One training image with rectangular instances, polygons as in COCO, and a basis target."""
    gt = Instances(size)
    gt.gt_boxes = Boxes(torch.tensor(boxes))
    gt.gt_classes = torch.arange(len(boxes))
    gt.gt_masks = PolygonMasks([[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes])
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    return {"image": image, "instances": gt, "basis_sem": basis_sem_from_instances(gt, size)}


def prune_and_train(cfg):
    """The pipeline of MODEL.PRUNE and MODEL.FINETUNE without its files; returns the prune's result."""
    model = build_model(cfg).eval()
    result = prune_model(model, request_from_cfg(cfg), trace_input_from_cfg(cfg, model))
    pruned = prepare(cfg, result.model, "the pruned model").train()
    optimizer = torch.optim.SGD(pruned.parameters(), lr=cfg.SOLVER.BASE_LR)
    batch = [item([[10.0, 12.0, 60.0, 70.0], [50.0, 20.0, 120.0, 90.0]]), item([[4.0, 4.0, 90.0, 80.0]])]
    losses = pruned(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in each(losses.values())), losses
    idle = [name for name, parameter in pruned.named_parameters() if parameter.grad is None]
    assert not idle
    optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in pruned.parameters())
    return result


@pytest.mark.parametrize("file", FILES)
def test_it_merges_and_builds(file):
    cfg = read(file, "MODEL.DEVICE", "meta")
    assert cfg.VERSION == 2
    with torch.device("meta"):
        model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    fcos = cfg.MODEL.FCOS
    levels = len(fcos.IN_FEATURES)
    assert len(fcos.FPN_STRIDES) == levels == len(fcos.SIZES_OF_INTEREST) + 1
    strides = model.backbone.output_shape()
    assert [strides[name].stride for name in fcos.IN_FEATURES] == fcos.FPN_STRIDES


@pytest.mark.parametrize("file", FILES)
def test_its_schedule_ends_after_its_last_step(file):
    solver = read(file).SOLVER
    assert list(solver.STEPS) == sorted(solver.STEPS)
    assert max(solver.STEPS, default=0) < solver.MAX_ITER


def test_no_two_configs_share_an_output_folder():
    whole = [file for file in FILES if not Path(file).name.startswith("Base-")]
    folders = [read(file).OUTPUT_DIR for file in whole]
    assert len(set(folders)) == len(folders), folders


def test_the_pruning_config_overwrites_no_baseline():
    baseline = read("BlendMask/R_50_1x.yaml").OUTPUT_DIR
    weights = f"{baseline}/model_final.pth"
    cfg = read("BlendMask/R_50_1x_prune.yaml", "MODEL.PRUNE", True, "MODEL.WEIGHTS", weights)
    check_modes(cfg)
    assert baseline != cfg.OUTPUT_DIR


@pytest.mark.parametrize("file", NAMED)
def test_narrowed_it_prunes_by_half_exactly_and_trains(file):
    result = prune_and_train(read(file, *NARROW))
    assert result.proof.exact, result.proof
    assert result.reached == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("file, parameters", FULL_WIDTH)
def test_at_full_width_it_prunes_by_half_exactly_and_trains(file, parameters):
    result = prune_and_train(read(file))
    assert parameters in (None, result.before.params)
    assert result.proof.exact, result.proof
    assert result.reached == pytest.approx(0.5, abs=0.01)
    assert result.after.macs == pytest.approx(0.5 * result.before.macs, rel=0.02)
