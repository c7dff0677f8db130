"""Taking fused convolutions apart, and putting them together, loses nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_pruning
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torch import nn

import d2prune.modeling  # noqa: F401  registers the narrow backbones
from d2prune.modeling.unfuse import thaw, unfused
from d2prune.pruning import prune
from tests.each import each


def resnet_fpn(depth=50, norm="FrozenBN", fpn_norm="GN", freeze_at=2):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = (
        "build_resnet_fpn_backbone" if depth == 50 else "build_narrow_resnet_fpn_backbone"
    )
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.merge_from_list(
        ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.NORM", norm, "MODEL.FPN.NORM", fpn_norm,
         "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
         "MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.FPN.OUT_CHANNELS", 64,
         "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
         "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]]
    )  # fmt: skip
    model = build_backbone(cfg)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.7, 1.3)
    return model.eval()


def images(size=64):
    return torch.rand(1, 3, size, size)


def run(model, x):
    with torch.no_grad():
        return model(x)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def facts(model):
    """Identities and attributes of every module."""
    return {
        name: (
            id(m),
            type(m),
            {k: v for k, v in vars(m).items() if isinstance(v, (int, tuple))},
            list(m._modules),
            list(m._parameters),
            list(m._buffers),
        )
        for name, m in model.named_modules()
    }


@pytest.mark.parametrize("depth, norm", [(50, "FrozenBN"), (18, "BN")])
def test_outputs_are_equal_before_inside_and_after(depth, norm):
    model, x = resnet_fpn(depth, norm), images()
    before, known = run(model, x), facts(model)
    state = {k: (id(v), v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    with unfused(model):
        inside = run(model, x)
        assert not any(isinstance(m, (Conv2d, FrozenBatchNorm2d)) for m in model.modules())
    for name, tensor in each(before.items()):
        assert torch.allclose(tensor, inside[name], rtol=1e-4, atol=1e-4), name
    assert same(run(model, x), before) and facts(model) == known
    for key, value in each(model.state_dict(keep_vars=True).items()):
        assert torch.equal(value, state.pop(key)[1]), key
    assert not state


def test_parameters_and_their_gradients_stay_the_same_objects():
    model = resnet_fpn(norm="BN", freeze_at=0)
    known = {n: id(p) for n, p in model.named_parameters()}
    with unfused(model):
        sum(v.mean() for v in model(images()).values()).backward()
    assert {n: id(p) for n, p in model.named_parameters()} == known
    assert model.bottom_up.stem.conv1.weight.grad is not None


def test_names_are_the_models_own():
    model = resnet_fpn()
    convs = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    norms = {n for n, m in model.named_modules() if isinstance(m, FrozenBatchNorm2d)}
    with unfused(model) as names:
        plain = {n for m, n in names.items() if type(m) is nn.Conv2d}
        thawed = {n for m, n in names.items() if isinstance(m, nn.BatchNorm2d)}
        assert set(names) <= set(model.modules())
    assert plain == convs and thawed == norms


def test_an_error_inside_still_restores():
    model, x = resnet_fpn(), images()
    before, known = run(model, x), facts(model)
    with pytest.raises(ZeroDivisionError), unfused(model):
        raise ZeroDivisionError
    assert same(run(model, x), before) and facts(model) == known


def test_a_context_in_a_context_changes_nothing_more():
    model, x = resnet_fpn(), images()
    before, known = run(model, x), facts(model)
    with unfused(model), unfused(model):
        run(model, x)
    assert same(run(model, x), before) and facts(model) == known


def test_a_copy_made_inside_is_a_model():
    model, x = resnet_fpn(18, "BN"), images()
    with unfused(model):
        twin = copy.deepcopy(model)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in each(zip(
        run(model, x).values(), run(twin, x).values(), strict=True
    )))  # fmt: skip


def test_widths_that_torch_pruning_changes_inside_are_kept():
    model, x = resnet_fpn(fpn_norm=""), images()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    block = model.bottom_up.res3[0]
    with unfused(model):
        graph = torch_pruning.DependencyGraph().build_dependency(
            model, x, output_transform=lambda out: list(out.values()), verbose=False
        )
        conv = block.conv1.conv
        graph.get_pruning_group(conv, torch_pruning.prune_conv_out_channels, [0, 3]).prune()
    conv1, conv2 = block.conv1, block.conv2
    assert type(conv1) is Conv2d and type(conv1.norm) is FrozenBatchNorm2d
    width = conv1.weight.shape[0]
    assert conv1.out_channels == conv1.norm.num_features == conv2.in_channels == width == 14
    assert conv1.norm.running_mean.shape == conv1.norm.weight.shape == (width,)
    assert "weight" in conv1.norm._buffers and not list(conv1.norm.parameters())
    assert run(model, x)["p2"].shape == (1, 64, 16, 16)


def test_thawing_is_for_good_and_exact():
    model, x = resnet_fpn(), images()
    before = run(model, x)
    names = thaw(model)
    assert names and not any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())
    assert all(model.get_submodule(n).weight.requires_grad for n in names)
    after = run(model, x)
    assert all(torch.allclose(before[k], after[k], rtol=1e-4, atol=1e-4) for k in each(before))
    assert all(f"{n}.num_batches_tracked" in model.state_dict() for n in names)


@pytest.mark.parametrize("depth, norm, fpn_norm", [(50, "FrozenBN", "GN"), (18, "FrozenBN", "")])
def test_a_zoo_backbone_is_pruned_everywhere_and_exactly(depth, norm, fpn_norm):
    model = resnet_fpn(depth, norm, fpn_norm, freeze_at=2)

    result = prune(
        model, 0.4, allocation="uniform", max_ratio=0.9,
        example_inputs=images(), forward_fn=lambda model, x: model(x),
    )  # fmt: skip
    assert result.proof.exact and abs(result.reached - 0.4) <= 0.02
    rows = {row.name: row for row in result.coverage}
    convs = [n for n, m in model.named_modules() if isinstance(m, Conv2d)]
    outputs = {n for n in convs if "fpn_output" in n}
    assert [n for n in each(convs) if rows[n].status != "pruned" and n not in outputs] == []
    assert rows["bottom_up.stem.conv1"].after < 8 and rows["bottom_up.res2.0.conv1"].status == "pruned"
    norms = [m for n, m in result.model.bottom_up.named_modules() if n.endswith("norm")]
    assert all(isinstance(m, FrozenBatchNorm2d) for m in each(norms))
    assert not result.model.bottom_up.stem.conv1.weight.requires_grad
