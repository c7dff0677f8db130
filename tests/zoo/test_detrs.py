"""D-FINE and RT-DETR of transformers: pruned exactly, reloaded, trained, and called as before."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")

from small_detrs import KINDS, detections, detr, pictures, targets
from torch import nn

import d2prune
from d2prune.core.layers import is_depthwise
from d2prune.modeling.unfuse import is_frozen_norm

AMOUNTS = {
    "a third of the channels": {"amount": 0.3, "target": "channels", "allocation": "uniform"},
    "half of the MACs": {"amount": 0.5, "target": "macs"},
}


def pruned(model, **options):
    options = {**AMOUNTS["a third of the channels"], **options}
    return d2prune.prune(model, example_inputs=pictures(), forward_fn=detections, **options)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def result(kind):
    return pruned(detr(kind))


@pytest.mark.parametrize("amount", AMOUNTS)
def test_it_is_exact_end_to_end_and_reloads(kind, amount, tmp_path):
    result = pruned(detr(kind), **AMOUNTS[amount])
    assert result.proof.exact, result.proof
    assert result.reached == pytest.approx(result.request.amount, abs=0.01)
    d2prune.save(result, tmp_path / "p.pth")
    loaded = d2prune.load(tmp_path / "p.pth", detr(kind)).eval()
    with torch.no_grad():
        want, got = (detections(model, pictures(2)) for model in (result.model, loaded))
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_backbone_encoder_and_decoder_all_get_smaller(result, kind):
    """Not the backbone alone: MLPs, split outputs and attention heads, too."""
    cut = [row.name for row in result.coverage if row.status == "pruned"]
    parts = ("backbone", "encoder", "decoder", "self_attn", *(("fc1", "mlp") if "DFine" in kind else ()))
    assert all(any(part in name for name in cut) for part in parts)
    assert all(row.reason for row in result.coverage if row.status != "pruned")


def test_depthwise_convolutions_follow(kind, result):
    found = [(m, result.model.get_submodule(n)) for n, m in detr(kind).named_modules() if is_conv(m)]
    depthwise = [(old, new) for old, new in found if old.groups > 1]
    assert len(depthwise) == (0 if kind.startswith("RT") else 10)
    for old, new in depthwise:
        assert is_depthwise(new) and new.groups == new.in_channels < old.groups


def is_conv(module):
    return isinstance(module, nn.Conv2d)


def test_frozen_norms_stay_frozen_and_where_they_were(kind, result):
    """No BatchNorm takes their place, so none can end up on another device or in another dtype."""
    before = {n: m for n, m in detr(kind).named_modules() if is_frozen_norm(m)}
    assert before
    for name, old in before.items():
        new = result.model.get_submodule(name)
        assert type(new) is type(old)
        assert {b.dtype for b in new.buffers()} == {b.dtype for b in old.buffers()}
        assert {b.device for b in new.buffers()} == {b.device for b in old.buffers()}
    assert any(result.model.get_submodule(n).weight.numel() < m.weight.numel() for n, m in before.items())


def test_the_complete_model_is_called_as_before(kind, result):
    """An evaluation needs .encoder, .decoder and every field of the output."""
    model, x = result.model, pictures(2)
    assert model.model.encoder is not None and model.model.decoder is not None
    with torch.no_grad():
        small, whole = model(pixel_values=x), detr(kind)(pixel_values=x)
    assert small.keys() == whole.keys() and small.logits.shape == whole.logits.shape == (2, 10, 5)


@pytest.mark.parametrize("denoising", [0, 20])
def test_it_trains_with_its_own_losses(kind, denoising):
    """Denoising queries and auxiliary losses run only in training; they must fit, too."""
    model = pruned(detr(kind, num_denoising=denoising), verify=False).model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    x, losses = pictures(2), []
    for _ in range(2):
        loss = model(x, labels=targets()).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] != losses[0] and torch.isfinite(torch.tensor(losses)).all()


AROUND = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
}


@pytest.mark.parametrize("around", AROUND)
def test_what_is_around_the_call_changes_nothing(kind, result, around):
    model = detr(kind)
    with AROUND[around]():
        got = pruned(model)
    assert got.spec == result.spec and got.proof.exact and got.proof.error < 1e-12
    assert [p.requires_grad for p in got.model.parameters()] == [p.requires_grad for p in model.parameters()]
    got.model.train()(pictures(2), labels=targets()).loss.backward()


def test_frozen_models_stay_frozen(kind, result):
    model = detr(kind).requires_grad_(False)
    got = pruned(model)
    assert got.spec == result.spec and got.proof.exact
    assert not any(p.requires_grad for p in got.model.parameters())


def test_a_model_in_training_mode_stays_in_it_and_as_it_was(kind):
    model = detr(kind).train()
    before = copy.deepcopy(model.state_dict())
    got = pruned(model, verify=False)
    assert got.model.training and model.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
