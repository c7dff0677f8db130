"""docs/guides/troubleshooting.md: each message is what comes up, and d2prune does what the page says."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch_pruning as tp
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn

import d2prune
from tests.pinned import pinned

# The page quotes these.
THEIRS, TORCH = pinned("torch-pruning", "1.6.1"), pinned("torch", "2.14.1")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "troubleshooting.md"
CHINESE = PAGE.with_name("troubleshooting.zh-CN.md")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def images(batch=1):
    return torch.rand(batch, 3, 32, 32)


def block(inp, out, groups=1):
    conv = nn.Conv2d(inp, out, 3, padding=1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


def net(groups=16):
    """A grouped convolution between others; depthwise with 16 groups."""
    return nn.Sequential(block(3, 16), block(16, 16, groups), block(16, 32), nn.Conv2d(32, 5, 1))


class Fused(nn.Module):
    """Norm and activation inside of the convolutions' forward, as Detectron2 has them."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.one = Conv2d(3, 64, 3, padding=1, norm=norm(64), activation=nn.functional.relu)
        self.two = Conv2d(64, 64, 3, padding=1, norm=norm(64))
        self.head = nn.Conv2d(64, 4, 1)

    def forward(self, x):
        return self.head(self.two(self.one(x)))


class Detector(nn.Module):
    """Like D-FINE: a backbone, an encoder, and targets as second argument."""

    def __init__(self):
        super().__init__()
        self.backbone, self.encoder = net(), block(5, 8)
        self.normalizer = lambda x: x * 2 - 1
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x, targets=None):
        return self.head(self.encoder(self.backbone(self.normalizer(x))))


def torch_pruning(model, x=None, **options):
    options.setdefault("ignored_layers", [list(model.modules())[-1]])
    importance = tp.importance.MagnitudeImportance()
    given = images() if x is None else x
    tp.pruner.MagnitudePruner(model, given, importance=importance, pruning_ratio=0.5, **options).step()
    return model


def by_d2prune(model, amount=0.4, **options):
    result = d2prune.prune(model, amount, **{"example_inputs": images(), **options})
    assert result.proof.exact and result.after.params < result.before.params
    return result


def fails(error, text):
    """Expects it, and that both pages have these words of it, which are the same for everybody."""
    for page in (PAGE, CHINESE):
        assert text in page.read_text(encoding="utf-8"), f"{text!r} is not in {page.name}"
    return pytest.raises(error, match=re.escape(text))


def params(model):
    return sum(p.numel() for p in model.parameters())


@TORCH
@THEIRS
def test_a_norm_made_anew_must_go_where_the_old_one_was():
    with fails(RuntimeError, "is not on the expected device"):
        model = net().to("meta")  # stands for a GPU; there the words are others
        model[0][1] = nn.BatchNorm2d(16)
        model(images().to("meta"))
    with fails(RuntimeError, "all inputs must share same datatype"):
        model = net().double()
        model[0][1] = nn.BatchNorm2d(16)
        model(images().double())
    result = by_d2prune(Fused(FrozenBatchNorm2d).double(), example_inputs=images().double())
    norm = result.model.one.norm
    assert isinstance(norm, FrozenBatchNorm2d) and norm.running_var.dtype == torch.float64


@TORCH
@THEIRS
def test_widths_that_the_groups_do_not_divide():
    model = net(4)
    with fails(RuntimeError, "INDICES element is out of DATA bounds"):
        graph = tp.DependencyGraph().build_dependency(model, images())
        graph.get_pruning_group(model[0][0], tp.prune_conv_out_channels, [0, 1, 2]).prune()
    with fails(ValueError, "in_channels must be divisible by groups"):
        nn.Conv2d(13, 16, 3, groups=4)
    with fails(RuntimeError, "to have 16 channels, but got 13 channels instead"):
        model = net()
        tp.prune_conv_out_channels(model[0][0], [0, 1, 2])
        tp.prune_batchnorm_out_channels(model[0][1], [0, 1, 2])
        model(images())


@pytest.mark.parametrize("groups", [4, 16])
def test_grouped_layers_follow(groups):
    conv = by_d2prune(net(groups), allocation="uniform").model[1][0]
    assert conv.in_channels < 16 and conv.in_channels % conv.groups == 0
    assert conv.groups == (4 if groups == 4 else conv.in_channels)


@TORCH
@THEIRS
def test_inputs_that_are_unpacked():
    with fails(TypeError, "invalid combination of arguments") as info:
        torch_pruning(net(), [torch.rand(3, 32, 32)] * 65)
    assert "takes 2 positional arguments but 66 were given" in str(info.value.__context__)
    seen = []
    model = Detector()
    model.register_forward_pre_hook(lambda module, args: seen.append([tuple(arg.shape) for arg in args]))
    torch_pruning(model, images(2))  # first as (image, targets), and only then as it is
    assert seen[:2] == [[(3, 32, 32)] * 2, [(2, 3, 32, 32)]]
    result = by_d2prune(Detector(), example_inputs=images(2))
    assert result.model(images(2)).shape == (2, 2, 32, 32)
    with pytest.raises(d2prune.PruneError, match="Detector does not run on example_inputs"):
        d2prune.prune(Detector(), 0.4, example_inputs=[torch.rand(3, 32, 32)] * 65)


@TORCH
@THEIRS
def test_a_backbone_alone_has_no_encoder():
    with fails(AttributeError, "object has no attribute 'encoder'"):  # as evaluation asks for it
        assert torch_pruning(Detector().backbone).encoder
    result = by_d2prune(Detector(), 0.2, include=["backbone.*"])
    assert result.model.encoder[0].out_channels == 8


@TORCH
@THEIRS
def test_the_counter_takes_no_function():
    with fails(TypeError, "unexpected keyword argument 'forward_fn'"):
        tp.utils.count_ops_and_params(net(), images(), forward_fn=lambda model, x: model(x))
    result = by_d2prune(Detector(), forward_fn=lambda model, x: model.backbone(x))
    assert result.after.macs < result.before.macs


def test_the_counter_does_not_see_detectron2s_convolutions():
    counted, _ = tp.utils.count_ops_and_params(Fused(), images())
    macs = 32 * 32 * (9 * (3 * 64 + 64 * 64) + 64 * 4)
    assert counted < 0.1 * macs and by_d2prune(Fused()).before.macs == macs


def test_nothing_pruned_is_not_said():
    frozen = net().requires_grad_(False)
    assert params(torch_pruning(frozen)) == params(net())
    assert params(torch_pruning(net(), round_to=64)) == params(net())
    by_d2prune(net().requires_grad_(False))
    with fails(d2prune.PruneError, "nothing was pruned: "):
        d2prune.prune(net(), 0.4, round_to=64, example_inputs=images())


@TORCH
@THEIRS
def test_gradients_must_be_on_for_torch_pruning_only():
    with fails(AssertionError, "Dependency graph relies on autograd for tracing"), torch.no_grad():
        torch_pruning(net())
    with torch.no_grad():
        by_d2prune(net())


@TORCH
@THEIRS
def test_fused_norms():
    with fails(RuntimeError, "running_mean should contain 32 elements not 64"):
        torch_pruning(Fused())(images())
    with fails(RuntimeError, "must match the size of tensor b"):
        torch_pruning(Fused(FrozenBatchNorm2d))(images())
    by_d2prune(Fused())


@TORCH
@THEIRS
def test_channel_shuffle():
    x = torch.rand(1, 3, 64, 64)
    with fails(ZeroDivisionError, "integer division or modulo by zero"):
        torch_pruning(torchvision.models.shufflenet_v2_x0_5(weights=None).eval(), x)
    by_d2prune(torchvision.models.shufflenet_v2_x0_5(weights=None).eval(), example_inputs=x)


@TORCH
@THEIRS
def test_ratios_and_importance():
    with fails(TypeError, "unsupported operand type(s) for *: 'float' and 'dict'"):
        tp.pruner.MagnitudePruner(net(), images(), tp.importance.MagnitudeImportance(), pruning_ratio={})
    with fails(TypeError, "len() of a 0-d tensor"):
        tp.pruner.MagnitudePruner(net(), images(), lambda group: torch.zeros(()), pruning_ratio=0.5).step()


@TORCH
@THEIRS
def test_saving_the_whole_module(tmp_path):
    with fails((AttributeError, pickle.PicklingError), "local object"):
        torch.save({"struct": Detector()}, io.BytesIO())
    result = by_d2prune(Detector())
    d2prune.save(result, tmp_path / "pruned.pth")
    model = d2prune.load(tmp_path / "pruned.pth", Detector()).eval()
    assert torch.equal(model(images() * 0), result.model.eval()(images() * 0))
    assert torch.load(tmp_path / "pruned.pth", weights_only=True)["struct"] is None


@TORCH
@THEIRS
def test_loading_the_whole_module():
    buffer = io.BytesIO()
    torch.save({"struct": net()}, buffer)
    buffer.seek(0)
    with fails(pickle.UnpicklingError, "Weights only load failed"):
        torch.load(buffer)


@TORCH
@THEIRS
def test_other_widths_are_not_skipped_by_strict_false():
    with fails(RuntimeError, "size mismatch for"):
        net().load_state_dict(by_d2prune(net()).model.state_dict(), strict=False)


@TORCH
@THEIRS
def test_keys_that_detectron2_does_not_have():
    cfg = get_cfg()
    with fails(AssertionError, "Non-existent key: MODEL.PRUNE"):
        cfg.merge_from_list(["MODEL.PRUNE", True])
    d2prune.add_prune_config(cfg)
    cfg.merge_from_list(["MODEL.PRUNE", True])
    assert cfg.MODEL.PRUNE
