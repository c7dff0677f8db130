"""Numbers of channels that a model's code names are corrected, and nothing else is."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

import d2prune
from d2prune.core.cut.spec import PruneSpec
from d2prune.core.literals.calls import corrected, positions
from d2prune.core.literals.corrections import Corrections, install, needed
from d2prune.core.types import Correction, Repeat
from d2prune.rebuild import rebuild
from tests.core.attentions import BY_CHANNEL, BY_HEAD, Cosine, Dino, GroupedHeads, Separate, Transformer


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
    for layer in ("qkv", "query", "key", "value"):
        rows = [r for r in result.coverage if r.name.endswith(layer)]
        assert all(row.status == "pruned" for row in rows)
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
    assert result.proof.exact and result.spec.corrections == {}


def test_an_error_leaves_no_correction_behind():
    model = pruned(Dino).model
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 7, 9))
    assert _get_current_function_mode_stack() == []


class Calls(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


VIEW = Correction(Repeat("view", 3, 2, 8, (8,)), 6, (6,))
OPEN = Correction(Repeat("view", 3, 2, 8, (8,), hole=1), 6, (6,))
PART = Correction(Repeat("slice", 2, 1, 24, (8, 24)), 18, (6, 18))
SPLIT = Correction(Repeat("split", 2, 1, 24, (8,)), 18, (6, 6, 6))


@pytest.mark.parametrize(
    "correction, call, shape",
    [
        (VIEW, lambda x: x.view(2, 3, 8), (2, 3, 6)),
        (OPEN, lambda x: x.reshape((2, -1, 8)), (2, 3, 6)),
        (VIEW, lambda x: x.unflatten(1, (3, 8)), (2, 3, 6)),
        (VIEW, lambda x: torch.unflatten(x, 1, sizes=(3, 8)), (2, 3, 6)),
        (VIEW, lambda x: x[:, None, :6].expand(2, 3, 8), (2, 3, 6)),
        (PART, lambda x: x[:, 8:24], (2, 12)),
        (PART, lambda x: x[..., 8:24], (2, 12)),
        (PART, lambda x: x.narrow(1, 8, 16), (2, 12)),
        (SPLIT, lambda x: x.split(8, 1)[2], (2, 6)),
        (SPLIT, lambda x: torch.split(x, 8, dim=1)[2], (2, 6)),
    ],
)
def test_a_call_is_corrected_where_it_names_what_was_written_down(correction, call, shape):
    model = Calls(call)
    install(model, {"": (correction,)})
    assert model(torch.zeros(2, 18)).shape == shape
    assert needed(model, lambda m: m(torch.zeros(2, 18))) == {"": (correction,)}


@pytest.mark.parametrize(
    "call",
    [lambda x: x.view(2, 9, 2), lambda x: x[:, :16].view(2, 2, 8), lambda x: x[:, 6:18].split(3, 1)[1]],
)
def test_other_calls_stay_as_they_are(call):
    model, x = Calls(call), torch.rand(2, 18)
    install(model, {"": (VIEW, OPEN, PART, SPLIT)})
    assert torch.equal(model(x), call(x)) and needed(model, lambda m: m(x)) == {}


HEADS = Correction(Repeat("view", 3, 0, 8, (8,), hole=2, beside=(8, 5, 6)), 4, (4,))


@pytest.mark.parametrize("pictures", [1, 3])
def test_heads_times_pictures_are_corrected_but_not_what_was_read_off(pictures):
    x = torch.rand(4 * pictures, 30)
    for call in (lambda x: x.view(8 * pictures, 5, -1), lambda x: x.view(x.shape[0], 5, -1)):
        model = Calls(call)
        install(model, {"": (HEADS,)})
        assert torch.equal(model(x), x.view(4 * pictures, 5, 6))


def test_a_half_of_a_width_is_not_halved_again():
    """The code of transformers' DPT: heads left to -1, in views before and after a product."""

    def call(x):
        x = x.view(1, -1, 3, 8).transpose(1, 2)
        return x.reshape(1, -1, 5, x.shape[3])

    views = [Repeat("view", 4, 3, 8, (8,), 1, beside) for beside in ((1, 5, 3, 8), (1, 3, 5, 8))]
    corrections = tuple(Correction(view, 4, (4,)) for view in views)
    x, model = torch.rand(1, 5, 12), Calls(call)
    install(model, {"": corrections})
    install(model, needed(model, lambda m: m(x)))
    assert torch.equal(model(x), x.view(1, 5, 3, 4).transpose(1, 2))


def test_installing_again_replaces():
    model = Calls(lambda x: x)
    install(model, {"": (VIEW,)})
    install(model, {"": (PART,)})
    (hook,) = model._forward_pre_hooks.values()
    assert isinstance(hook.__self__, Corrections) and len(model._forward_hooks) == 1
    install(model, {})
    assert not model._forward_pre_hooks and not model._forward_hooks


def test_a_split_is_given_by_its_ends():
    repeat = Repeat("split", 2, 1, 10, (4,))
    assert positions(repeat) == (4, 8, 10) and corrected(repeat, (3, 5, 6)) == (3, 2, 1)


def test_products_of_activations_count_towards_the_amount():
    result = d2prune.prune(Transformer(Dino), 0.3, example_inputs=tokens(64))
    measured = 1 - result.after.macs / result.before.macs
    assert result.reached == pytest.approx(measured) == pytest.approx(0.3, abs=0.01)
