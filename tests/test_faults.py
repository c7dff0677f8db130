"""Faults that an outside check of the pruner found, each by the smallest model that showed it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import d2prune
from d2prune.core.cut.proof import MisfitError
from d2prune.errors import PruneError, told
from d2prune.pruning import cutter, proving, prune

ROWS = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def rows(result):
    return {row.name: row for row in result.coverage}


class Between(nn.Module):
    """Three linear layers, and what a test puts between the second and the third."""

    def __init__(self, between=lambda x: x):
        super().__init__()
        self.a, self.b, self.o = nn.Linear(16, 64), nn.Linear(64, 48), nn.Linear(48, 4)
        self.between = between

    def forward(self, x):
        return self.o(self.between(F.relu(self.b(F.relu(self.a(x))))))


@pytest.mark.parametrize("seed", range(4))
def test_channels_that_are_rolled_are_left_whole_and_named(seed):
    torch.manual_seed(seed)

    class Rolled(Between):
        def forward(self, x):
            return self.o(F.relu(self.b(F.relu(self.a(x)).roll(3, -1))))

    result = prune(Rolled(), 0.3, "params", example_inputs=ROWS)
    assert result.proof.exact and rows(result)["b"].status == "pruned"
    assert rows(result)["a"].status == "pruned" or "mixes up others" in rows(result)["a"].reason


EYE = torch.eye(48)


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x @ torch.eye(48),
        lambda x: x @ EYE,
        lambda x: x.float() @ torch.ones(48, 48, dtype=torch.float32),
        lambda x: F.linear(x.to(torch.float32), EYE),
    ],
)
def test_constants_in_float32_are_proved_in_float64(between):
    result = prune(Between(between), 0.3, "params", example_inputs=ROWS)
    assert result.proof.exact and result.proof.dtype == "float64" and result.proof.error < 1e-12
    assert torch.get_default_dtype() == torch.float32


def test_a_model_that_does_not_run_in_float64_is_refused_by_name():
    def between(x):
        if x.dtype == torch.float64:
            raise RuntimeError("no kernel for Double")
        return x

    with pytest.raises(PruneError, match="needs Between in float64, where it does not run: no kernel"):
        prune(Between(between), 0.3, "params", example_inputs=ROWS)


def test_numpy_in_forward():
    def between(x):
        return x * float(np.abs(x.detach().numpy()).max())

    result = prune(Between(between), 0.3, "macs", example_inputs=ROWS)
    assert result.before.macs == 3 * (16 * 64 + 64 * 48 + 48 * 4) and rows(result)["a"].status == "pruned"


@pytest.mark.parametrize("inside", [False, True])
def test_torchscript_is_refused_with_the_remedy(inside):
    traced = torch.jit.trace(Between().eval(), ROWS)
    model = nn.Sequential(traced, nn.Linear(4, 4)) if inside else traced
    with pytest.raises(PruneError, match="is TorchScript .* prune the original module, and trace"):
        prune(model, 0.3, example_inputs=ROWS)


@pytest.mark.parametrize("amount, reached", [(0.4, 0.4), (0.3, 0.4), (0.15, 0.15)])
def test_the_nearest_amount_is_found(amount, reached):
    class Coarse(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 32, 1), nn.Conv2d(3, 128, 1)
            self.norm, self.wide = nn.GroupNorm(4, 32), nn.GroupNorm(2, 128)
            self.o, self.p = nn.Conv2d(32, 2, 1), nn.Conv2d(128, 2, 1)

        def forward(self, x):
            return self.o(self.norm(self.a(x))) + self.p(self.wide(self.b(x)))

    model = Coarse()
    with torch.no_grad():
        model.b.weight.mul_(100)
    result = prune(model, amount, "channels", example_inputs=torch.rand(1, 3, 8, 8))
    assert result.proof.exact and result.reached == pytest.approx(reached)


def test_a_tied_embedding_was_run(caplog):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.up, self.down = nn.Embedding(20, 16), nn.Linear(16, 64), nn.Linear(64, 16)
            self.out = nn.Linear(16, 20, bias=False)
            self.out.weight = self.emb.weight

        def forward(self, ids):
            return self.out(self.down(F.relu(self.up(self.emb(ids)))))

    result = prune(Tied(), 0.3, "params", example_inputs=torch.arange(6)[None])
    assert result.proof.exact and "were not run" not in caplog.text
    assert result.model.out.weight is result.model.emb.weight


class Auxiliary(nn.Module):
    """A second head that only training runs, as GoogLeNet's."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(16, 64), nn.Linear(64, 4), nn.Linear(64, 4)
        self.drop = nn.Dropout()

    def forward(self, x):
        x = F.relu(self.body(x))
        y = self.head(self.drop(x))
        return (y, self.aux(x)) if self.training else y


def test_heads_of_training_only_are_warned_of_with_what_to_pass(caplog):
    prune(Auxiliary(), 0.3, example_inputs=ROWS)
    assert "forward_fn= that runs them too (one that sets model.training = True" in caplog.text

    def both(model, x):
        model.training = True
        return model(x)

    result = prune(Auxiliary(), 0.3, example_inputs=ROWS, forward_fn=both)
    assert result.proof.exact and result.proof.compared == ("output.0", "output.1")
    assert [y.shape for y in result.model.train()(ROWS)] == [(3, 4), (3, 4)]


class Standardised(nn.Conv2d):
    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias)


def test_weight_standardisation_is_named():
    layers = [nn.Conv2d(3, 16, 1), nn.ReLU(), Standardised(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)]
    result = prune(nn.Sequential(*layers), 0.2, "channels", example_inputs=torch.rand(1, 3, 12, 12))
    assert result.proof.exact and rows(result)["2"].status == "pruned"
    assert rows(result)["0"].reason.startswith("2 computes its weights (weight standardisation?): ")


def test_an_output_of_zeros_says_so():
    model = Between()
    with torch.no_grad():
        model.o.weight.zero_(), model.o.bias.zero_()
    proof = prune(model, 0.3, example_inputs=ROWS).proof
    assert not proof.exact and proof.reason == (
        "inconclusive: the output is constant, all zeros: initialise the head or load weights"
    )


def test_constant_outputs_are_said():
    class Anchors(Between):
        def forward(self, x):
            return {"y": super().forward(x), "anchors": self.b.bias.detach()[:1] * 0 + torch.ones(5)}

    proof = prune(Anchors(), 0.3, example_inputs=ROWS).proof
    assert (
        proof.exact
        and proof.compared == ("output.y", "output.anchors")
        and proof.constant == ("output.anchors",)
    )


@pytest.mark.parametrize("noise", [lambda x: x + torch.randn_like(x), F.dropout])
def test_randomness_is_named(noise):
    with pytest.raises(
        PruneError, match=r"Between gives another output each time it runs, at output \(noise"
    ):
        prune(Between(noise), 0.3, example_inputs=ROWS)


def test_an_assertion_without_text_is_placed():
    class Counts(Between):
        def forward(self, x):
            y = F.relu(self.a(x))
            if y.shape[1] != 64:
                raise AssertionError
            return self.o(F.relu(self.b(y)))

    result = prune(Counts(), 0.3, "params", example_inputs=ROWS)
    assert "does not run (AssertionError at test_faults.py, line" in rows(result)["a"].reason
    assert result.proof.exact


def test_trials_of_traced_graphs_print_no_tracebacks(capfd):
    class Counts(Between):
        def forward(self, x):
            y = F.relu(self.a(x))
            torch._assert(y.shape[-1] == 64, "64 expected")
            return self.o(F.relu(self.b(y)))

    result = prune(torch.fx.symbolic_trace(Counts()), 0.3, "params", example_inputs=ROWS)
    assert rows(result)["a"].status == "skipped" and "Traceback" not in capfd.readouterr().err


def test_the_models_rounding_is_allowed_but_no_change_of_a_weight():
    model = Between(lambda x: torch.sin(x * 3e8))
    result = prune(model, 0.3, "params", example_inputs=ROWS)
    assert result.proof.exact and 1e-9 < result.proof.error < 1e-6


def test_a_small_change_is_found_where_rounding_is_small(monkeypatch):
    cut = cutter.cut_by_plan

    def sabotaged(*args):
        spec, pruned = cut(*args)
        with torch.no_grad():
            pruned.o.weight.add_(3e-8)
        return spec, pruned

    monkeypatch.setattr(cutter, "cut_by_plan", sabotaged)
    with pytest.raises(MisfitError, match=r"allowed 1e-09"):
        prune(Between().double(), 0.3, "params", example_inputs=ROWS)


@pytest.mark.parametrize("kind", [TypeError, AttributeError])
def test_mistakes_of_our_own_are_not_laid_on_the_model(monkeypatch, kind):
    def broken(*_):
        raise kind("ours")

    try:
        broken()
    except kind as error:
        assert told(error) == "ours"  # raised in a test: not in the package
    monkeypatch.setattr(d2prune.core.cut.surgery, "cut", None)
    with pytest.raises(TypeError, match="NoneType"):
        prune(Between(), 0.3, example_inputs=ROWS)


class Sized(nn.Module):
    """Flattens heads by a number in its code, which means the same for any image."""

    def __init__(self, width=lambda x: 16):
        super().__init__()
        self.a, self.o, self.width = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1), width

    def forward(self, x):
        n, _, h, w = x.shape
        return self.o(F.relu(self.a(x)).view(-1, 16, h, w))


def test_code_that_changes_is_compared_on_other_inputs_too():
    result = prune(Sized(), 0.3, "params", example_inputs=torch.rand(1, 3, 8, 8))
    assert result.spec.calls and result.proof.exact
    assert result.proof.inputs == ("1x3x8x8", "2x3x8x8", "1x3x40x72")


def test_inputs_that_the_unpruned_model_does_not_take_are_left_out():
    class Fixed(Sized):
        def forward(self, x):
            return self.o(F.relu(self.a(x)).view(-1, 16, 8, 8))

    result = prune(Fixed(), 0.3, "params", example_inputs=torch.rand(1, 3, 8, 8))
    assert result.proof.exact and result.proof.inputs == ("1x3x8x8", "2x3x8x8")


def test_the_exact_part_of_an_inexact_plan_is_proved(monkeypatch):
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    reason = prune(
        model, 0.5, "channels", allow_inexact=True, example_inputs=ROWS, allocation="uniform"
    ).proof.reason
    assert "the exact part was proved (error" in reason and "the inexact part changes outputs by" in reason
    cut = proving.cut_by_plan

    def sabotaged(*args):
        spec, pruned = cut(*args)
        with torch.no_grad():
            pruned[4].bias[0] += 1e-3
        return spec, pruned

    monkeypatch.setattr(proving, "cut_by_plan", sabotaged)
    with pytest.raises(MisfitError, match="not equal to the masked one"):
        prune(model, 0.5, "channels", allow_inexact=True, example_inputs=ROWS, allocation="uniform")


def test_a_torchvision_detector_as_it_is_is_refused_by_name():
    model = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None).eval()
    images = torch.rand(1, 3, 64, 64)
    with pytest.raises(PruneError, match="FCOS is a torchvision detector: .* pass a forward_fn="):
        d2prune.prune(model, 0.3, example_inputs=([images[0]],))

    def dense(model, images):
        return model.head(list(model.backbone(images).values()))

    assert d2prune.prune(model, 0.1, example_inputs=images, forward_fn=dense).proof.exact


def test_a_bare_parameter_may_end_with_one_value():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)
            self.scale = nn.Parameter(torch.rand(2, 1, 1))

        def forward(self, x):
            return self.last(self.first(x) * self.scale)

    result = prune(Scaled().eval(), 0.5, "channels", example_inputs=torch.rand(1, 3, 8, 8))
    assert result.proof.exact and result.model.scale.shape == (1, 1, 1)
    assert {row.name: row.after for row in result.coverage}["scale"] == 1
