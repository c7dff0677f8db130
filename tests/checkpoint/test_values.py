"""Weights have the kind of number that the model's have, and are finite, or it is said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2prune.checkpoint import PruningCheckpointer, load_narrower, read_checkpoint
from d2prune.checkpoint import load as load_pruned
from d2prune.checkpoint.values import check_kinds, first_not_finite, same_kind
from d2prune.errors import PruneError
from d2prune.rebuild import rebuild
from tests.checkpoint.loading import load, untouched
from tests.tiny_blendmask import equal, snapshot, tiny_model

KEY = "top_layer.bias"
OTHERS = [torch.bool, torch.int8, torch.uint8, torch.int64, torch.complex64]


def changed(data, path, change):
    data["model"] = dict(data["model"])
    change(data["model"])
    torch.save(data, path)
    return path


@pytest.fixture
def fresh(result):
    return rebuild(tiny_model(seed=1), result.spec)


@pytest.mark.parametrize("dtype", OTHERS)
def test_pruned_weights_of_another_kind_are_refused(saved, fresh, tmp_path, dtype):
    path = changed(read_checkpoint(saved), tmp_path / "x.pth", lambda w: w.update({KEY: w[KEY].to(dtype)}))
    expected = (
        rf"x.pth' holds {dtype} for '{KEY}'; expected floating-point values, as the model's torch.float32"
    )
    untouched(fresh, path, expected)
    model = tiny_model()
    before = snapshot(model)
    with pytest.raises(PruneError, match=expected):
        load_pruned(path, model)
    assert equal(snapshot(model), before)


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("query", ["", "?matching_heuristics=True"])
def test_unpruned_weights_of_another_kind_are_refused(tmp_path, dtype, query):
    model = tiny_model()
    weights = {**model.state_dict(), KEY: model.state_dict()[KEY].to(dtype)}
    torch.save({"model": weights}, tmp_path / "x.pth")
    before = snapshot(model)
    with pytest.raises(PruneError, match=rf"x.pth.*' holds {dtype} for '{KEY}'"):
        PruningCheckpointer(model).load(f"{tmp_path / 'x.pth'}{query}")
    assert equal(snapshot(model), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_loaded(saved, fresh, result, tmp_path, dtype):
    path = changed(read_checkpoint(saved), tmp_path / "x.pth", lambda w: w.update({KEY: w[KEY].to(dtype)}))
    load(fresh, path)
    assert torch.equal(fresh.state_dict()[KEY], result.model.state_dict()[KEY].to(dtype).float())


def test_integers_are_not_floats_either():
    norm = nn.BatchNorm2d(1).state_dict()
    check_kinds("x", norm, {"num_batches_tracked": torch.tensor(1, dtype=torch.int32)})
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(PruneError, match="'num_batches_tracked'; expected integer values"):
            check_kinds("x", norm, {"num_batches_tracked": torch.tensor(1, dtype=dtype)})
    assert not same_kind(torch.ones(1), torch.quantize_per_tensor(torch.ones(1), 1.0, 0, torch.qint8))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [*((value, torch.float32) for value in (float("nan"), float("inf"), -float("inf"))),
     *((value, torch.float64) for value in (1e300, -1e39))],
)  # fmt: skip
def test_pruned_weights_must_be_finite_in_the_models_precision(saved, fresh, tmp_path, value, dtype):
    def spoil(weights):
        weights[KEY] = weights[KEY].to(dtype, copy=True)
        weights[KEY][0] = value

    path = changed(read_checkpoint(saved), tmp_path / "x.pth", spoil)
    untouched(fresh, path, f"x.pth' holds NaN or infinity in '{KEY}'; expected finite weights")


def test_unpruned_weights_that_are_not_finite_are_loaded_with_a_warning(tmp_path, log):
    model = tiny_model()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    weights[KEY][0] = float("nan")
    torch.save({"model": weights}, tmp_path / "x.pth")
    load(model, tmp_path / "x.pth")
    assert f"holds NaN or infinity in '{KEY}'" in log.text


def test_a_mask_may_hold_infinity_and_nothing_may_hold_nan():
    model = nn.BatchNorm2d(2)
    model.register_buffer("mask", torch.zeros(2))
    for name, value, found in [
        ("mask", float("-inf"), None),
        ("mask", float("nan"), "mask"),
        ("running_var", float("inf"), "running_var"),
        ("weight", float("inf"), "weight"),
    ]:
        assert first_not_finite(model, {name: torch.tensor([1.0, value])}) == found
    eight = torch.ones(2).to(torch.float8_e4m3fn)
    assert first_not_finite(model, {"weight": eight}) is None


def test_a_narrower_model_takes_no_other_kind_either():
    model = nn.Linear(2, 2)
    (row, _) = load_narrower(model, {"weight": torch.ones(2, 2, dtype=torch.int8)})
    assert (row.name, row.how) == ("weight", "skipped")
