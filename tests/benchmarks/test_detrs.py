"""D-FINE and RT-DETR of transformers: pruned exactly, reloaded, trained, and called as before."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")

from torch import nn

import d2prune
from d2prune.modeling.unfuse import is_frozen_norm
from tests.benchmarks.small_detrs import KINDS, detections, detr, pictures, targets
from tests.each import each


def pruned(model, amount=0.3, **options):
    options = {"target": "channels", "allocation": "uniform", **options}
    return d2prune.prune(model, amount, example_inputs=pictures(), forward_fn=detections, **options)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def result(kind):
    return pruned(detr(kind))


def exact_and_reloads(kind, result, path):
    assert result.proof.exact, result.proof
    assert result.reached == pytest.approx(result.request.amount, abs=0.01)
    d2prune.save(result, path)
    loaded = d2prune.load(path, detr(kind)).eval()
    with torch.no_grad():
        want, got = (detections(model, pictures(2)) for model in (result.model, loaded))
    assert all(torch.equal(a, b) for a, b in each(zip(want, got, strict=True)))
    assert not torch.allclose(*want[0], atol=1e-4)  # of two pictures


def test_it_is_exact_end_to_end_and_reloads(kind, result, tmp_path):
    exact_and_reloads(kind, result, tmp_path / "p.pth")


@pytest.mark.parametrize("name", [KINDS[0], *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[1:])])
def test_half_of_the_macs_is_exact_and_reloads(name, tmp_path):
    result = pruned(detr(name), 0.5, target="macs", allocation="global")
    exact_and_reloads(name, result, tmp_path / "p.pth")


def test_backbone_encoder_and_decoder_all_get_smaller(result):
    """Not the backbone alone: MLPs, split outputs and attention heads, too."""
    cut = [row.name for row in result.coverage if row.status == "pruned"]
    for part in ("backbone", "encoder", "decoder", "self_attn", "mlp"):
        assert any(part in name for name in cut), part
    assert all(row.reason for row in each(row for row in result.coverage if row.status != "pruned"))


def test_depthwise_convolutions_follow(kind, result):
    found = [(m, result.model.get_submodule(n)) for n, m in detr(kind).named_modules() if is_conv(m)]
    depthwise = [(old, new) for old, new in found if old.groups > 1]
    assert len(depthwise) == (0 if kind.startswith("RT") else 8)
    widths = [(new.groups, new.in_channels, new.out_channels) for _, new in depthwise]
    assert [w for w in widths if len(set(w)) > 1] == []
    assert [new for old, new in depthwise if new.groups >= old.groups] == []


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


def test_it_trains_with_its_own_losses(kind, result):
    """Denoising queries and auxiliary losses run only in training; they must fit, too."""
    model = copy.deepcopy(result.model).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    x, losses = pictures(2), []
    for _ in range(2):
        out = model(x, labels=targets())
        optimizer.zero_grad()
        out.loss.backward()
        assert all(
            torch.isfinite(p.grad).all() for p in each(p for p in model.parameters() if p.grad is not None)
        )
        optimizer.step()
        losses.append(out.loss.item())
    assert any("dn" in name for name in out.loss_dict)
    assert losses[1] != losses[0] and torch.isfinite(torch.tensor(losses)).all()


AROUND = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
}


@pytest.mark.parametrize("kind", KINDS[:1], indirect=True)
@pytest.mark.parametrize("around", AROUND)
def test_what_is_around_the_call_changes_nothing(kind, result, around):
    model = detr(kind).requires_grad_(around != "autocast")
    with AROUND[around]():
        got = pruned(model)
    assert got.spec == result.spec
    assert got.proof.exact and got.proof.error < 1e-12
    assert {p.requires_grad for p in got.model.parameters()} == {around != "autocast"}


def test_a_model_in_training_mode_stays_in_it_and_as_it_was():
    model = detr(KINDS[-1]).train()
    before = copy.deepcopy(model.state_dict())
    got = pruned(model, verify=False)
    assert got.model.training and model.training
    assert all(
        torch.equal(a, b) for a, b in each(zip(before.values(), model.state_dict().values(), strict=True))
    )


@pytest.mark.slow
def test_onnx_computes_what_the_pruned_model_does(kind, result, tmp_path):
    """Of another picture only that it is one: queries are chosen by top-k, where rounding may swap two."""
    script = pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, x, path = Detections(result.model.eval()), pictures(), str(tmp_path / "model.onnx")
    # D-FINE checks its shapes in the graph by an operator that torch's exporter does not know.
    op = script.opset18
    table = {torch.ops.aten._is_all_true.default: lambda x: op.Cast(op.ReduceMin(op.Cast(x, to=6)), to=9)}
    torch.onnx.export(
        model, (x,), path, dynamo=True, input_names=["images"], verbose=False, custom_translation_table=table
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        want = model(x)
    got, other = (session.run(None, {"images": p.numpy()}) for p in (x, 1 - x))
    for mine, another, expected in each(zip(got, other, want, strict=True)):
        torch.testing.assert_close(torch.from_numpy(mine), expected, atol=1e-4, rtol=1e-4)
        assert abs(mine - another).max() > 1e-2


class Detections(nn.Module):
    """The dense outputs alone, as tensors: what an exporter can name."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return detections(self.model, images)
