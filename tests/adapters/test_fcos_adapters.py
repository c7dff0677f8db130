"""FCOS and BlendMask, every family: pruned, proved, trained, rebuilt."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_model

from d2prune.adapters import TraceInput, find_adapter
from d2prune.adapters.fcos import BlendMaskAdapter, FCOSAdapter
from d2prune.checkpoint import PruningCheckpointer
from d2prune.core.cut.spec import PruneSpec
from d2prune.core.cut.surgery import mask
from d2prune.modeling import BlendMask, OneStageDetector
from d2prune.pruning import find_groups, measure_model, prune
from d2prune.rebuild import rebuild
from tests.adapters.families import SIZE, dense, takes_any_size
from tests.each import each
from tests.modeling.small_models import (
    LEVELS_550,
    PANOPTIC,
    RT,
    backward,
    build,
    eager,
    small_cfg,
    training_batch,
)

LOSS_OFF = ("MODEL.BASIS_MODULE.LOSS_ON", False)
FROZEN = (
    "MODEL.RESNETS.NORM", "FrozenBN",
    "MODEL.BACKBONE.FREEZE_AT", 2,
    "MODEL.FPN.NORM", "GN",
)  # fmt: skip
BOTTLENECK = (
    "MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH", 50,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
    *FROZEN,
)  # fmt: skip
ODD = (
    "MODEL.BLENDMASK.ATTN_SIZE", 7,
    "MODEL.BASIS_MODULE.NUM_BASES", 3,
    "MODEL.BASIS_MODULE.NUM_CONVS", 2,
    "MODEL.FCOS.USE_SCALE", True,
)  # fmt: skip
BLENDMASKS = {
    "loss on": (),
    "loss off": LOSS_OFF,
    "rt": RT,
    "rt bn": ("MODEL.FCOS.NORM", "BN", *RT),
    "rt sync": ("MODEL.FCOS.NORM", "SyncBN", "MODEL.RESNETS.NORM", "SyncBN", *RT),
    "550": LEVELS_550,
    "odd": ODD,
    "panoptic": PANOPTIC,
    "frozen": FROZEN,
    "bottleneck": BOTTLENECK,
}
FCOS = {
    "plain": (),
    "iou": ("MODEL.FCOS.BOX_QUALITY", "iou"),
    "bn": ("MODEL.FCOS.NORM", "BN", *RT),
    "no norm": ("MODEL.FCOS.NORM", "none"),
}
CASES = [("BlendMask", n) for n in BLENDMASKS] + [("OneStageDetector", n) for n in FCOS]


def make(arch, name):
    model = build(*(BLENDMASKS if arch == "BlendMask" else FCOS)[name], arch=arch)
    return lively(model)


def lively(model):
    """Norms and statistics as if trained: every channel different."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.dim() == 1 and tensor.numel() > 1 and ("norm" in name or "running" in name):
                tensor.uniform_(0.5, 1.5)
    return model


def batch():
    items = training_batch()
    for item in items:
        item["sem_seg"] = torch.randint(0, 3, item["image"].shape[-2:])
    return items


def rows(result):
    return {row.name: row for row in result.coverage}


@pytest.mark.parametrize("arch, name", CASES)
def test_every_family_is_pruned_exactly_rebuilt_and_trains(arch, name):
    model = make(arch, name)
    result = prune(model, 0.4, input_size=SIZE, allocation="uniform")
    assert result.proof.exact and abs(result.reached - 0.4) <= 0.01
    left = {n for n, row in rows(result).items() if row.status == "skipped"}
    assert {n for n in left if ".scales." not in n} == set()
    want = dense(mask(copy.deepcopy(model).double(), result.spec))
    got = dense(copy.deepcopy(result.model).double())
    assert set(want) == set(got) == set(result.proof.compared)
    assert all((want[k] - got[k]).abs().max() <= 1e-9 * want[k].abs().max() for k in each(want))
    takes_any_size(result.model)
    takes_the_spec_and_the_weights(make(arch, name), result)
    losses = backward(result.model, batch())
    assert all(loss.isfinite() for loss in each(losses.values()))
    assert all(p.grad is not None for p in each(p for p in result.model.parameters() if p.requires_grad))


def takes_the_spec_and_the_weights(fresh, result):
    rebuild(fresh, PruneSpec.from_json(result.spec.to_json()))
    fresh.load_state_dict(result.model.state_dict(), strict=True)
    want, got = dense(result.model), dense(fresh)
    assert all(torch.equal(want[k], got[k]) for k in each(want))


def test_detections_of_a_rebuilt_model_are_bit_equal():
    result = prune(eager(make("BlendMask", "loss on")), 0.3, input_size=SIZE)
    fresh = rebuild(make("BlendMask", "loss on"), result.spec)
    fresh.load_state_dict(result.model.state_dict(), strict=True)
    images = training_batch()
    with torch.no_grad():
        one, two = (m.eval()(images)[0]["instances"] for m in (result.model, fresh))
    assert len(one) > 0 and torch.equal(one.scores, two.scores)
    assert torch.equal(one.pred_masks, two.pred_masks)


def test_the_semantic_branch_is_cut_with_what_it_reads():
    result = prune(make("BlendMask", "loss on"), 0.5, allocation="uniform", input_size=SIZE)
    branch, level = result.model.basis_module.seg_head, result.model.backbone.fpn_output3
    assert branch[0].in_channels == level.out_channels < 32
    assert rows(result)["basis_module.seg_head.0"].status == "pruned"
    assert "basis_sem" in result.proof.compared


def test_branches_that_only_train_cost_no_macs():
    models = [make("BlendMask", name) for name in ("loss on", "loss off")]
    on, off = (measure_model(m, TraceInput(m, count_size=SIZE)).totals for m in models)
    assert on.macs == off.macs and on.params > off.params


def test_levels_share_their_towers_but_not_their_norms():
    result = prune(make("BlendMask", "rt bn"), 0.5, allocation="uniform", input_size=SIZE)
    tower = result.model.proposal_generator.fcos_head.share_tower
    assert {norm.num_features for norm in tower[1]} == {tower[0].out_channels}
    assert len(tower[1]) == 3 and tower[0].out_channels < 32


def test_every_dense_output_is_part_of_the_interface():
    model = make("BlendMask", "loss on")
    fixed = {g.name: g.fixed for g in find_groups(model, TraceInput(model))}
    head = "proposal_generator.fcos_head."
    for name, output in {
        head + "cls_logits": "P3/logits", head + "bbox_pred": "P3/bbox_reg",
        "top_layer": "P3/top_feats",
        "basis_module.tower.3": "bases",
    }.items():  # fmt: skip
        assert fixed[name] == f"is the model's output '{output}'"
    assert fixed[head + "ctrness"] == "has a single channel"


@pytest.mark.parametrize("before, after", [("loss on", "loss off"), ("loss off", "loss on")])
def test_the_semantic_loss_may_change_between_prune_and_finetune(before, after):
    result = prune(make("BlendMask", before), 0.4, allocation="uniform", input_size=SIZE)
    model = rebuild(make("BlendMask", after), result.spec)
    found = model.load_state_dict(result.model.state_dict(), strict=False)
    changed = found.missing_keys if after == "loss on" else found.unexpected_keys
    assert changed and all(key.startswith("basis_module.seg_head.") for key in changed)
    assert not (found.unexpected_keys if after == "loss on" else found.missing_keys)
    want, got = dense(result.model), dense(model)
    assert set(want) ^ set(got) == {"basis_sem"}
    assert all(torch.equal(want[k], got[k]) for k in each(set(want) & set(got)))
    losses = backward(model, batch())
    assert ("loss_basis_sem" in losses) == (after == "loss on")


def test_a_model_rebuilt_with_the_loss_on_prunes_again():
    first = prune(make("BlendMask", "loss off"), 0.2, input_size=SIZE)
    model = rebuild(make("BlendMask", "loss on"), first.spec)
    second = prune(model, 0.3, allocation="uniform", input_size=SIZE)
    assert second.proof.exact
    fresh = rebuild(make("BlendMask", "loss on"), second.spec)
    fresh.load_state_dict(second.model.state_dict(), strict=True)
    backward(fresh, batch())


def test_macs_follow_the_input_size():
    model = make("BlendMask", "loss on")
    targets = [TraceInput(model, count_size=size) for size in ((256, 256), (512, 512))]
    small, large = (measure_model(model, target).totals.macs for target in targets)
    assert large == 4 * small


def test_images_of_our_own_are_traced_and_counted():
    model, images = make("BlendMask", "rt"), torch.rand(1, 3, 64, 128) * 255
    result = prune(model, 0.3, example_inputs=images)
    assert result.proof.exact
    assert result.before == measure_model(model, TraceInput(model, count_size=(64, 128))).totals


def test_subclasses_have_their_parents_adapter():
    class Mine(BlendMask):
        pass

    model = make("BlendMask", "rt")
    model.__class__ = Mine
    assert isinstance(find_adapter(model), BlendMaskAdapter)
    result = prune(model, 0.3, input_size=SIZE)
    assert result.proof.exact and result.spec.base == "Mine" and type(result.model) is Mine


def test_architectures_have_their_own_adapters():
    assert type(find_adapter(make("BlendMask", "rt"))) is BlendMaskAdapter
    assert type(find_adapter(make("OneStageDetector", "plain"))) is FCOSAdapter
    assert not issubclass(BlendMask, OneStageDetector)


def test_half_precision_and_training_mode_are_kept():
    model = build_model(small_cfg(*RT)).train().bfloat16()
    result = prune(model, 0.3, input_size=SIZE)
    assert result.proof.exact and result.model.training
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}


def test_checkpoints_that_say_centerness_load(tmp_path):
    model = build_model(small_cfg()).eval()
    weights = {k.replace(".ctrness.", ".centerness."): v + 1 for k, v in model.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "old.pth")
    PruningCheckpointer(model).load(str(tmp_path / "old.pth"))
    ctrness = model.state_dict()["proposal_generator.fcos_head.ctrness.weight"]
    assert torch.equal(ctrness, weights["proposal_generator.fcos_head.centerness.weight"])


def test_any_size_is_counted_as_the_model_pads_it():
    model = build().eval()
    sizes = ((225, 255), (256, 256))
    one, two = (measure_model(model, TraceInput(model, count_size=size)).totals for size in sizes)
    assert one == two


def test_a_users_images_may_be_of_any_size():
    """Of 800 x 1333, say, which is no multiple of 32."""
    batches = [[{"image": torch.rand(3, 131, 150) * 255, "height": 131, "width": 150}] for _ in range(8)]
    result = prune(build().eval(), 0.3, data=batches, input_size=SIZE)
    assert result.proof.exact and result.repair.proof.exact
