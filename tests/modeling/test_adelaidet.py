"""AdelaiDet's own models, pruned: runs only where AdelaiDet is installed with its compiled parts."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model

import d2prune
from d2prune.adapters import TraceInput
from d2prune.modeling import HAS_ADELAIDET, basis_sem_from_instances
from tests.each import each
from tests.modeling.small_models import LEVELS_550, RT, eager, small_cfg, training_batch

if not HAS_ADELAIDET:
    pytest.skip("AdelaiDet (adet.modeling) can't be imported here", allow_module_level=True)

RESNET_50 = (
    "MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH", 50,
    "MODEL.RESNETS.NORM", "FrozenBN",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
)  # fmt: skip
BN_HEAD = (*RT, "MODEL.FCOS.NORM", "SyncBN", "MODEL.RESNETS.NORM", "SyncBN")
NO_BASIS_LOSS = ("MODEL.BASIS_MODULE.LOSS_ON", False)
CASES = {
    "blendmask": ("BlendMask", ()),
    "no_basis_loss": ("BlendMask", NO_BASIS_LOSS),
    "r50": ("BlendMask", RESNET_50),
    "550": ("BlendMask", LEVELS_550),
    "rt": ("BlendMask", RT),
    "rt_bn_head": ("BlendMask", BN_HEAD),
    "rt_bn_head_no_basis_loss": ("BlendMask", (*BN_HEAD, *NO_BASIS_LOSS)),
    "fcos": ("OneStageDetector", ("MODEL.FCOS.USE_SCALE", True)),
    "fcos_bn_head": ("OneStageDetector", BN_HEAD),
}


@pytest.fixture(params=CASES, scope="module")
def cfg(request):
    arch, pairs = CASES[request.param]
    return small_cfg(*pairs, arch=arch)


@pytest.fixture(scope="module")
def model(cfg):
    torch.manual_seed(0)
    return eager(build_model(cfg)).eval()


@pytest.fixture(scope="module")
def result(model):
    return d2prune.prune(model, 0.5, round_to=4, input_size=(192, 256))


def batch():
    items = training_batch()
    for item in items:
        item["basis_sem"] = basis_sem_from_instances(item["instances"], item["image"].shape[1:])
    return items


def detections(model):
    """What AdelaiDet finds; it infers only from a batch without instances."""
    with torch.no_grad():
        found = model.eval()([{"image": item["image"]} for item in training_batch()])
    return [each["instances"] for each in found]


def same_detections(one, other):
    torch.manual_seed(1)
    first = detections(one)
    torch.manual_seed(1)
    for a, b in each(zip(first, detections(other), strict=True)):
        assert len(a) > 0
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        if a.has("pred_masks"):
            assert torch.equal(a.pred_masks, b.pred_masks)


def test_its_classes_are_used(model):
    assert type(model).__module__.startswith("adet.")
    assert type(model.proposal_generator).__module__.startswith("adet.")
    assert META_ARCH_REGISTRY.get(type(model).__name__) is type(model)


def test_half_the_macs_go_exactly(result):
    assert result.proof.exact, result.proof
    assert result.reached == pytest.approx(0.5, abs=0.03)
    assert result.after.macs < 0.53 * result.before.macs


def test_it_is_counted_on_meta(model):
    outputs = TraceInput(model).inference(copy.deepcopy(model).to("meta"))
    assert all(tensor.is_meta for tensor in each(outputs.values()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_runs_densely_in_other_dtypes(model, dtype):
    with torch.no_grad():
        outputs = TraceInput(model).outputs(copy.deepcopy(model).to(dtype))
    assert {tensor.dtype for tensor in outputs.values()} == {dtype}


def test_the_pruned_model_trains(result):
    model = copy.deepcopy(result.model).train()
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    optimizer = torch.optim.SGD(parameters, lr=1e-4)
    losses = model(batch())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in each(losses.values()))
    assert not [n for n, p in zip(names, parameters, strict=True) if p.grad is None]
    optimizer.step()
    assert detections(model)


def test_saved_and_loaded_it_finds_the_same(result, cfg, tmp_path):
    d2prune.save(result, tmp_path / "pruned.pth")
    loaded = d2prune.load(tmp_path / "pruned.pth", build_model(cfg))
    same_detections(result.model, loaded)


def test_its_struct_unpickles(result, tmp_path):
    d2prune.save(result, tmp_path / "pruned.pth")
    assert torch.load(tmp_path / "pruned.pth", weights_only=True)["struct"] is None
    struct = torch.load(tmp_path / "pruned.pth", weights_only=False)["struct"]
    assert type(struct) is type(result.model)
    same_detections(result.model, struct)


def test_copies_find_the_same(result):
    same_detections(result.model, copy.deepcopy(result.model))


def test_it_can_be_pruned_again(result):
    again = d2prune.prune(result.model, 0.2, input_size=(192, 256))
    assert again.proof.exact
    assert again.after.macs < result.after.macs
