"""Models of specs of version 1, whose numbers are corrected by likeness; tests/checkpoint loads the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import d2prune
from d2prune.core.literals.version1 import Correction, Corrections, install
from d2prune.core.types import SizeLiteral
from tests.core.attentions import Dino, Transformer

FILE = Path(__file__).parents[2] / "fixtures" / "version_1" / "dino.pth"


def test_a_model_with_corrections_is_not_pruned_further():
    model = d2prune.load(FILE, Transformer(Dino)).eval()
    with pytest.raises(d2prune.PruneError, match="pruned by a spec of version 1"):
        d2prune.prune(model, 0.2, example_inputs=torch.rand(2, 7, 8))


class Calls(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


VIEW = Correction(SizeLiteral("view", 3, 2, 8, (8,)), 6, (6,))
OPEN = Correction(SizeLiteral("view", 3, 2, 8, (8,), inferred_dim=1), 6, (6,))
PART = Correction(SizeLiteral("slice", 2, 1, 24, (8, 24)), 18, (6, 18))
SPLIT = Correction(SizeLiteral("split", 2, 1, 24, (8,)), 18, (6, 6, 6))


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


@pytest.mark.parametrize(
    "call",
    [lambda x: x.view(2, 9, 2), lambda x: x[:, :16].view(2, 2, 8), lambda x: x[:, 6:18].split(3, 1)[1]],
)
def test_other_calls_stay_as_they_are(call):
    model, x = Calls(call), torch.rand(2, 18)
    install(model, {"": (VIEW, OPEN, PART, SPLIT)})
    assert torch.equal(model(x), call(x))


HEADS = Correction(SizeLiteral("view", 3, 0, 8, (8,), inferred_dim=2), 4, (4,), full_shape=(8, 5, 6))


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

    view = SizeLiteral("view", 4, 3, 8, (8,), 1)
    corrections = tuple(Correction(view, 4, (4,), shape) for shape in ((1, 5, 3, 8), (1, 3, 5, 8)))
    x, model = torch.rand(1, 5, 12), Calls(call)
    install(model, {"": corrections})
    assert torch.equal(model(x), x.view(1, 5, 3, 4).transpose(1, 2))


def test_installing_again_replaces():
    model = Calls(lambda x: x)
    install(model, {"": (VIEW,)})
    install(model, {"": (PART,)})
    (hook,) = model._forward_pre_hooks.values()
    assert isinstance(hook.__self__, Corrections) and len(model._forward_hooks) == 1
    install(model, {})
    assert not model._forward_pre_hooks and not model._forward_hooks


def test_a_call_with_too_many_ways_to_correct_it_is_refused_at_once():
    rows = [
        Correction(SizeLiteral("view", 4, dim, 8, (8,)), 6, (new,), full_shape=(new,) * 4)
        for dim in range(4)
        for new in range(9, 20)
    ]
    model = Calls(lambda x: x.view(8, 8, 8, 8))
    install(model, {"": rows})
    with pytest.raises(d2prune.PruneError, match="corrects a call in more than 10000 ways"):
        model(torch.zeros(3, 7))
