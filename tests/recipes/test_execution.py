"""Recipes carried out: exact, by importance, into the model that the narrower config builds."""

from __future__ import annotations

import pytest
import torch

import d2prune
from d2prune import PruneError
from d2prune.adapters import TraceInput
from d2prune.checkpoint import build_from_cfg, read_checkpoint
from d2prune.config import read_config
from d2prune.recipes import Recipe, carry_out, narrowed, write_recipe
from tests.each import each
from tests.recipes.test_what_if import STEPS
from tests.tiny_lsknet import CONFIGS, TINY, pairs_of, tiny_lsk, tiny_lsk_cfg

RPN = "proposal_generator.rpn_head.conv"


def steps(*names):
    return tuple(STEPS[name] for name in names)


@pytest.fixture(scope="module")
def done():
    cfg = tiny_lsk_cfg()
    model = tiny_lsk(cfg)
    return model, carry_out(cfg, model, narrowed(cfg, steps("head", "mlp", "fpn")))


def outputs(model):
    with torch.no_grad():
        return TraceInput(model).outputs(model)


def test_it_is_exact_and_what_the_narrower_config_builds(done):
    _, narrow = done
    assert narrow.result.proof.exact and all(row.how == "taken" for row in each(narrow.rows))
    want, got = outputs(narrow.result.model), outputs(narrow.model)
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in each(want))


def test_widths_are_the_plans_and_the_rpn_keeps_its_own(done):
    _, narrow = done
    layers = dict(narrow.model.named_modules())
    assert layers["roi_heads.box_head.fc1"].weight.shape == (24, 24 * 49)
    assert layers["backbone.bottom_up.block4.0.mlp.dwconv.dwconv"].weight.shape == (64, 1, 3, 3)
    assert layers[RPN].weight.shape == (32, 24, 3, 3)
    assert {f"backbone.fpn_{kind}{i}" for kind in ("lateral", "output") for i in (2, 3, 4, 5)} <= {
        name for name, layer in layers.items() if getattr(layer, "out_channels", 0) == 24
    }


def test_the_channels_that_count_most_stay(done):
    """The magnitude of a hidden channel of an MLP, over all that makes, carries and reads it."""
    model, narrow = done
    kept = narrow.result.spec.layers["backbone.bottom_up.block2.0.mlp.fc1"].out
    whole = model.backbone.bottom_up.block2[0].mlp.fc1.weight
    torch.testing.assert_close(narrow.model.backbone.bottom_up.block2[0].mlp.fc1.weight, whole[list(kept)])
    assert len(kept) == 48 and kept != tuple(range(48))


def test_the_rpn_goes_with_the_fpn_where_that_is_asked_for():
    cfg = tiny_lsk_cfg()
    follows = d2prune.recipes.Step("rpn", {"MODEL.RPN.CONV_DIMS": [-1]})
    narrow = carry_out(cfg, tiny_lsk(cfg), narrowed(cfg, [*steps("fpn"), follows]))
    assert narrow.result.proof.exact
    assert narrow.model.get_submodule(RPN).weight.shape == (24, 24, 3, 3)


@pytest.mark.parametrize(
    "name, reason", [("gate", "mixed by"), ("one fc", "a layer less"), ("stage", "LayerNorm")]
)
def test_what_is_not_exact_is_refused(name, reason):
    cfg = tiny_lsk_cfg()
    with pytest.raises(PruneError, match=rf"not exact; the first: .*{reason}.*--allow-inexact"):
        carry_out(cfg, tiny_lsk(cfg), narrowed(cfg, steps("head", name)))


def test_what_is_not_exact_is_done_where_it_is_allowed():
    cfg = tiny_lsk_cfg()
    narrow = carry_out(cfg, tiny_lsk(cfg), narrowed(cfg, steps("head", "gate")), allow_inexact=True)
    assert not narrow.result.proof.exact and all(row.how == "taken" for row in each(narrow.rows))
    gate = narrow.model.backbone.bottom_up.block4[0].attn.spatial_gating_unit
    assert gate.conv1.out_channels == gate.conv.in_channels == 10


def test_of_a_layer_that_is_gone_nothing_is_kept_and_that_is_said():
    cfg = tiny_lsk_cfg()
    narrow = carry_out(cfg, tiny_lsk(cfg), narrowed(cfg, steps("one fc")), allow_inexact=True)
    assert narrow.result is None
    skipped = {row.name for row in narrow.rows if row.how == "skipped"}
    assert skipped == {"roi_heads.box_head.fc2.weight", "roi_heads.box_head.fc2.bias"}


def test_the_files_of_a_plan_are_a_config_and_the_weights_it_names(tmp_path):
    cfg = tiny_lsk_cfg()
    file = str(CONFIGS / "digits_faster_rcnn_lsk.yaml")
    opts = [str(x) for x in (*pairs_of(TINY), "MODEL.DEVICE", cfg.MODEL.DEVICE)]
    recipe = Recipe("A", steps("head", "mlp"))
    said = write_recipe(cfg, file, opts, recipe, str(tmp_path), tiny_lsk(cfg))
    assert "exact, error" in said
    path = tmp_path / "digits_faster_rcnn_lsk_pruneA.yaml"
    read = read_config(d2prune.get_cfg(), str(path))
    expected = narrowed(cfg, recipe.steps).clone()
    expected.defrost()
    expected.MODEL.WEIGHTS = str(path.with_suffix(".pth"))
    assert read == expected
    held = read_checkpoint(path.with_suffix(".pth"))["model"]
    loaded = build_from_cfg(read).state_dict()
    assert held.keys() == loaded.keys() and all(torch.equal(held[name], loaded[name]) for name in each(held))


def test_without_a_model_only_the_config_is_written(tmp_path):
    cfg = tiny_lsk_cfg()
    said = write_recipe(
        cfg, str(CONFIGS / "digits_faster_rcnn_lsk.yaml"), [], Recipe("A", steps("head")), str(tmp_path)
    )
    assert "sizes only" in said
    assert [path.name for path in tmp_path.iterdir()] == ["digits_faster_rcnn_lsk_pruneA.yaml"]
