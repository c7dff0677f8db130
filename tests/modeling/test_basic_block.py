"""BasicBlock with separate norms: Detectron2's block, in outputs, names and both directions."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import resnet
from torch import nn

from d2prune.checkpoint import PruningCheckpointer
from d2prune.modeling.basic_block import (
    BasicBlock,
    join_norms,
    rename_separate_norms,
    separate_norms,
)
from tests.modeling.small_models import small_cfg

SHAPES = [(8, 8, 1), (8, 16, 1), (8, 16, 2)]
NORMS = ["BN", "FrozenBN", "GN", ""]
SEPARATE_OF = {"conv1": "norm1", "conv2": "norm2", "shortcut": "norm3"}


def lively(model):
    """Norms that do something."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model


def stock_block(shape=(8, 16, 2), norm="BN"):
    inputs, outputs, stride = shape
    norm = (lambda c: nn.GroupNorm(4, c)) if norm == "GN" else norm
    return lively(resnet.BasicBlock(inputs, outputs, stride=stride, norm=norm))


def own_block(shape=(8, 16, 2), norm="BN"):
    inputs, outputs, stride = shape
    norm = (lambda c: nn.GroupNorm(4, c)) if norm == "GN" else norm
    return lively(BasicBlock(inputs, outputs, stride=stride, norm=norm))


def resnet18(*pairs):
    cfg = small_cfg("MODEL.BACKBONE.NAME", "build_narrow_resnet_fpn_backbone", *pairs)
    return lively(build_backbone(cfg)).eval()


def separately_named(state):
    """The names of seeds/002: norm1, norm2, norm3 beside the convolutions."""
    renamed = {}
    for name, tensor in state.items():
        for conv, norm in SEPARATE_OF.items() if "stem" not in name else ():
            name = name.replace(f"{conv}.norm.", f"{norm}.")
        renamed[name] = tensor
    return renamed


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def same_outputs(one, other, train=False):
    x = torch.rand(2, 8, 10, 12)
    one.train(train), other.train(train)
    results = [one(x.clone()), other(x.clone())]
    return torch.equal(*results)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_block_is_detectron2s(shape, norm):
    stock, own = stock_block(shape, norm), own_block(shape, norm)
    assert list(own.state_dict()) == list(stock.state_dict())
    own.load_state_dict(stock.state_dict(), strict=True)
    assert same_outputs(stock, own) and same_outputs(stock, own, train=True)
    assert equal(own.state_dict(), stock.state_dict()), "running statistics too"
    assert (own.in_channels, own.out_channels, own.stride) == (
        stock.in_channels, stock.out_channels, stock.stride,
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_equal(shape):
    stock = stock_block(shape)
    own = separate_norms(copy.deepcopy(stock))
    x = torch.rand(2, 8, 10, 12)
    for block in (stock, own):
        block.train()(x).square().sum().backward()
    gradients = [{n: p.grad for n, p in block.named_parameters()} for block in (stock, own)]
    assert equal(*gradients)


@pytest.mark.parametrize("build", [own_block, lambda *a: separate_norms(stock_block(*a))])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_norms_are_attributes(build, shape):
    block = build(shape)
    assert block.norm1 is block.conv1.norm and block.norm2 is block.conv2.norm
    assert block.norm3 is (block.shortcut.norm if block.shortcut is not None else None)
    assert type(block.conv1) is nn.Conv2d, "its forward must not run the norm"
    assert torch.equal(block.conv1(x := torch.rand(1, 8, 9, 9)), nn.functional.conv2d(
        x, block.conv1.weight, None, shape[2], 1))  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
def test_conversion_there_and_back_changes_nothing(norm):
    stock = stock_block(norm=norm)
    twin, modules = copy.deepcopy(stock), dict(stock.named_modules())
    assert separate_norms(stock) is stock and type(stock) is BasicBlock
    assert same_outputs(stock, twin) and list(stock.state_dict()) == list(twin.state_dict())
    assert join_norms(stock) is stock and type(stock) is resnet.BasicBlock
    assert type(stock.conv1) is Conv2d and same_outputs(stock, twin)
    assert list(stock.state_dict()) == list(twin.state_dict())
    assert dict(stock.named_modules()) == modules, "modules keep their identity"


def test_an_own_block_can_become_detectron2s():
    own = own_block()
    twin = copy.deepcopy(own)
    joined = join_norms(own)
    assert type(joined) is resnet.BasicBlock and type(joined.conv1) is Conv2d
    assert same_outputs(joined, twin)


def test_converting_twice_is_converting_once():
    stock = stock_block()
    twin = copy.deepcopy(stock)
    separate_norms(separate_norms(stock))
    assert len(stock._load_state_dict_pre_hooks) == 1
    assert same_outputs(join_norms(join_norms(stock)), twin)


def test_other_peoples_hooks_survive():
    stock, called = stock_block(), []
    stock.register_load_state_dict_pre_hook(lambda *args: called.append(1))
    state = stock.state_dict()
    join_norms(separate_norms(stock)).load_state_dict(state)
    assert called == [1]


def test_subclasses_are_left_alone():
    class Own(resnet.BasicBlock):
        pass

    block = separate_norms(nn.Sequential(Own(8, 8), resnet.BasicBlock(8, 8)))
    assert type(block[0]) is Own and type(block[1]) is BasicBlock


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN"])
@pytest.mark.parametrize("naming", [dict, separately_named])
def test_either_naming_loads_into_the_separate_block(naming, norm):
    source, own = stock_block(norm=norm), own_block(norm=norm)
    own.load_state_dict(naming(source.state_dict()), strict=True)
    assert same_outputs(own, source)


@pytest.mark.parametrize("naming", [dict, separately_named])
@pytest.mark.parametrize("convert", [separate_norms, lambda model: model])
def test_either_naming_loads_into_either_resnet(tmp_path, naming, convert):
    source, target = resnet18(), convert(resnet18())
    torch.save({"model": naming(source.state_dict())}, tmp_path / "x.pth")
    PruningCheckpointer(target).load(str(tmp_path / "x.pth"))
    assert equal(dict(target.state_dict()), dict(source.state_dict()))


def test_either_naming_loads_into_a_separate_resnet_without_a_checkpointer():
    source, target = resnet18(), separate_norms(resnet18())
    target.load_state_dict(separately_named(source.state_dict()), strict=True)
    assert equal(dict(target.state_dict()), dict(source.state_dict()))


def test_what_is_written_has_detectron2s_names(tmp_path):
    model = separate_norms(resnet18())
    PruningCheckpointer(model, str(tmp_path)).save("x")
    assert list(torch.load(tmp_path / "x.pth")["model"]) == list(resnet18().state_dict())


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_a_whole_resnet_survives_both_conversions(norm):
    model = resnet18("MODEL.RESNETS.NORM", norm)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        before, keys = model(x), list(model.state_dict())
        separate_norms(model)
        assert equal(model(x), before) and list(model.state_dict()) == keys
        assert sum(type(m) is BasicBlock for m in model.modules()) == 8
        join_norms(model)
        assert equal(model(x), before) and list(model.state_dict()) == keys
    assert sum(type(m) is resnet.BasicBlock for m in model.modules()) == 8
    assert model.bottom_up.output_shape() == resnet18().bottom_up.output_shape()


def test_the_stem_and_other_fused_convolutions_stay():
    model = separate_norms(resnet18())
    assert type(model.bottom_up.stem.conv1) is Conv2d and type(model.fpn_lateral3) is Conv2d


def test_freezing_and_copying_work_on_the_separate_block():
    block = separate_norms(stock_block())
    copied = copy.deepcopy(block)
    copied.load_state_dict(separately_named(block.state_dict()), strict=True)
    assert same_outputs(copied, block)
    block.freeze()
    assert not any(p.requires_grad for p in block.parameters())
    assert isinstance(block.norm1, FrozenBatchNorm2d), "Detectron2's freeze replaces the norms"


def test_names_that_the_model_has_are_not_changed():
    state = {"a.norm1.weight": 1, "b.norm1.weight": 2, "norm3.bias": 3, "b.norm10.weight": 4}
    wanted = {"a.norm1.weight", "b.conv1.norm.weight", "shortcut.norm.bias"}
    assert rename_separate_norms(state, wanted) == 2
    assert set(state) == wanted | {"b.norm10.weight"}
