"""Numbers of channels that a model's code names are brought in line, and nothing else is."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import d2prune
from d2prune.core.cut.spec import PruneSpec
from d2prune.core.literals.calls import numbers_for, positions
from d2prune.core.types import SizeLiteral
from d2prune.rebuild import rebuild
from tests.core.attentions import (
    BY_CHANNEL,
    BY_HEAD,
    Chunked,
    Cosine,
    Dino,
    GroupedHeads,
    Separate,
    Transformer,
    Unbound,
)  # fmt: skip
from tests.each import each


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def tokens(count=7):
    return torch.randn(2, count, 8, generator=torch.Generator().manual_seed(1))


def pruned(attention, amount=0.3):
    model = Transformer(attention)
    return d2prune.prune(model, amount, allocation="uniform", example_inputs=tokens())


@pytest.mark.parametrize("attention", [*BY_CHANNEL, *BY_HEAD])
def test_attention_is_pruned_exactly(attention, tmp_path):
    result = pruned(attention)
    assert result.proof.exact and result.proof.error < 1e-12
    rows = [r for r in result.coverage if r.name.endswith(("qkv", "query", "key", "value"))]
    assert all(row.status == "pruned" for row in each(rows))
    result.model.train()(tokens(5)).sum().backward()
    d2prune.save(result, tmp_path / "p.pth")
    loaded = d2prune.load(tmp_path / "p.pth", Transformer(attention)).eval()
    again = pickle.loads(pickle.dumps(copy.deepcopy(loaded)))
    for other in (loaded, again):
        assert torch.equal(other(tokens(5)), result.model.eval()(tokens(5)))


@pytest.mark.parametrize("attention", BY_HEAD)
def test_whole_heads_go_where_their_channels_cannot(attention):
    result = pruned(attention)
    kept = result.spec.layers["attentions.0.qkv"].out
    heads = [{c // 8 % 4 for c in kept if c // 32 == part} for part in range(3)]
    assert len(kept) == 24 * len(heads[0]) < 96 and heads.count(heads[0]) == 3
    assert result.model(torch.randn(5, 6, 8)).shape == (5, 6, 3)


@pytest.mark.parametrize("attention", [Cosine, Dino, GroupedHeads, Separate])
def test_pruning_twice_equals_one_spec(attention):
    first = pruned(attention)
    second = d2prune.prune(first.model, 0.3, allocation="uniform", example_inputs=tokens())
    assert second.proof.exact
    spec = PruneSpec.from_json(second.spec.to_json())
    assert spec == second.spec
    fresh = rebuild(Transformer(attention), spec)
    fresh.load_state_dict(second.model.state_dict())
    assert torch.equal(fresh.eval()(tokens()), second.model.eval()(tokens()))


def test_code_that_follows_by_itself_is_not_corrected():
    class Follows(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            x = x.reshape(*x.shape[:-1], 4, x.shape[-1] // 4).flatten(-2)
            return self[1](x[..., : x.shape[-1] // 2] * x[..., x.shape[-1] // 2 :])

    model = Follows(nn.Linear(8, 32), nn.Linear(16, 2))
    result = d2prune.prune(model, 0.3, example_inputs=tokens())
    assert result.proof.exact and not result.spec.code


@pytest.mark.parametrize("attention", [*BY_CHANNEL, *BY_HEAD])
def test_a_pruned_model_is_plain_pytorch(attention):
    """No hooks; traced and exported it equals itself."""
    model, x = pruned(attention).model.eval(), tokens()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    want = model(x)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), want)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), want)
    explanation = torch._dynamo.explain(model)(x)
    assert explanation.graph_break_count == 0


@pytest.mark.parametrize("attention", [Chunked, Unbound, Separate])
def test_what_attributes_explain_is_set(attention):
    result = pruned(attention)
    if attention is Separate:  # its scale is worked out from the attribute while it runs, so that must stay
        assert not result.spec.attributes and result.spec.calls
    else:
        assert result.model.attentions[0].head_dim == result.spec.attributes["attentions.0"]["head_dim"][1]
        assert not result.spec.calls and result.spec.scales["attentions.0.qkv"]


def test_a_model_of_attributes_is_unpickled_without_d2prune(tmp_path):
    model = pruned(Chunked).model.eval()
    torch.save({"model": model, "x": tokens(), "y": model(tokens())}, tmp_path / "m.pt")
    code = f"""
import sys, torch
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "d2prune": raise ImportError("d2prune is asked for")
sys.meta_path.insert(0, Refuse())
data = torch.load({str(tmp_path / "m.pt")!r}, weights_only=False)
torch.testing.assert_close(data["model"](data["x"]), data["y"])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_attributes_that_differ_from_the_spec_are_refused():
    result = pruned(Chunked)
    other = Transformer(Chunked)
    other.attentions[0].head_dim = 9
    with pytest.raises(d2prune.PruneError, match="head_dim.*is 9.*made for 8"):
        rebuild(other, result.spec)


def test_scaled_rows_are_those_of_the_keys():
    result = pruned(Unbound)
    heads = result.model.attentions[0].head_dim * 4
    ((start, stop, factor),) = result.spec.scales["attentions.0.qkv"]
    assert (start, stop) == (heads, 2 * heads) and factor == pytest.approx((heads / 32) ** 0.5)


class Beyond(nn.Module):
    """A slice that begins behind the width that is left."""

    def __init__(self, inputs=16, outputs=24):
        super().__init__()
        self.inputs, self.conv = inputs, nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        y = self.conv(x)
        return torch.cat([y[:, 0 : self.inputs] + x, y[:, self.inputs :]], 1)


def test_a_slice_may_begin_where_nothing_is_left():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), Beyond(), nn.Conv2d(24, 5, 1)).eval()
    result = d2prune.prune(model, 0.5, "channels", example_inputs=torch.randn(1, 3, 8, 8))
    assert result.proof.exact and result.reached > 0.4
    again = rebuild(nn.Sequential(nn.Conv2d(3, 16, 1), Beyond(), nn.Conv2d(24, 5, 1)), result.spec)
    again.load_state_dict(result.model.state_dict())
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(again.eval()(x), result.model.eval()(x))


@pytest.mark.parametrize(
    "numbers, places, new",
    [((4,), (3, 6, 8), (3,)), ((4,), (3, 5, 6), (3, 2, 1)), ((4, 4, 2), (3, 5, 6), (3, 2, 1))],
)
def test_a_split_is_given_by_its_ends(numbers, places, new):
    literal = SizeLiteral("split", 2, 1, 10, numbers)
    assert positions(literal) == (4, 8, 10) and numbers_for(literal, places) == new


def test_products_of_activations_count_towards_the_amount():
    result = d2prune.prune(Transformer(Dino), 0.3, example_inputs=tokens(64))
    measured = 1 - result.after.macs / result.before.macs
    assert result.reached == pytest.approx(measured) == pytest.approx(0.3, abs=0.01)
