"""What recipes save: the figures of LSKNet-S, and that counting agrees with pruning."""

from __future__ import annotations

import re

import pytest

import d2prune
from d2prune import PruneError
from d2prune.config import read_config
from d2prune.engine.settings import trace_input_from_cfg
from d2prune.pruning import find_groups
from d2prune.recipes import Recipe, Step, read_recipe, what_if, what_if_table
from tests.each import each
from tests.tiny_lsknet import CONFIGS, tiny_lsk, tiny_lsk_cfg

WHOLE = 30_977_062
STEPS = {
    "head": Step("head", {"MODEL.ROI_BOX_HEAD.FC_DIM": 24}),
    "mlp": Step("mlp", {"MODEL.LSKNET.MLP_RATIOS": [3, 3, 2, 2]}),
    "fpn": Step("fpn", {"MODEL.FPN.OUT_CHANNELS": 24}),
    "gate": Step("gate", {"MODEL.LSKNET.BRANCH_DIVISORS": [2, 2, 3, 3]}),
    "stage": Step("stage", {"MODEL.LSKNET.EMBED_DIMS": [8, 16, 24, 24]}),
    "one fc": Step("one fc", {"MODEL.ROI_BOX_HEAD.NUM_FC": 1}),
    "convs": Step("convs", {"MODEL.ROI_BOX_HEAD.NUM_CONV": 1, "MODEL.ROI_BOX_HEAD.CONV_DIM": 8}),
    "nothing": Step("nothing", {"MODEL.ROI_BOX_HEAD.FC_DIM": 32}),
}


@pytest.fixture(scope="module")
def whole():
    cfg = tiny_lsk_cfg()
    model = tiny_lsk(cfg)
    return cfg, find_groups(model, trace_input_from_cfg(cfg, model))


@pytest.mark.parametrize("name, percents", [("A", [11.87, 18.53]), ("C", [17.64, 24.31, 29.89, 31.41])])
def test_the_plans_for_lsknet_s(name, percents):
    cfg = read_config(d2prune.get_cfg(), str(CONFIGS / "lsk_s_fpn_1x_dota_le90.yaml"))
    result = what_if(cfg, read_recipe(str(CONFIGS / "recipes" / f"{name}.yaml")), ())
    assert result.before.params == WHOLE
    saved = [sum(row.saved.params for row in result.rows[:n]) for n in range(1, len(percents) + 1)]
    assert [round(100 * part / WHOLE, 2) for part in saved] == percents
    assert saved[-1] == WHOLE - result.after.params


@pytest.mark.parametrize(
    "names, reason",
    [
        (["head", "mlp", "fpn"], ""),
        (["gate"], "mixed by aten::mean"),
        (["mlp", "stage"], "LayerNorm"),
        (["one fc"], "a layer less"),
        (["convs"], "a new layer"),
    ],
)
def test_what_is_exact_is_told_from_what_is_not(whole, names, reason):
    cfg, groups = whole
    result = what_if(cfg, Recipe("p", tuple(STEPS[name] for name in names)), groups)
    assert result.exact == (not reason)
    assert any(reason in change.reason for change in result.rows[-1].changes)
    first = result.rows[0]
    assert len(names) == 1 or not any(change.reason for change in each(first.changes))
    text = what_if_table([result])
    assert f"recipe p: {result.after.params:,} left" in text and (reason in text or not reason)


@pytest.mark.parametrize(
    "keys, width, reason",
    [
        ({"FPN__NORM": "GN"}, 32, "a cut leaves 16 groups of .*, a GroupNorm, and the recipe 32"),
        ({"FPN__NORM": "GN"}, 96, "not all of them"),
        ({"ROI_BOX_HEAD__NUM_FC": 0, "ROI_BOX_HEAD__NUM_CONV": 1, "ROI_BOX_HEAD__CONV_DIM": 16}, 32, ""),
    ],
)
def test_norms_of_groups_and_wider_layers_are_seen(keys, width, reason):
    cfg = tiny_lsk_cfg(FPN__OUT_CHANNELS=64, **keys)
    model = tiny_lsk(cfg)
    groups = find_groups(model, trace_input_from_cfg(cfg, model))
    step = Step("fpn", {"MODEL.FPN.OUT_CHANNELS": width})
    reasons = [change.reason for change in what_if(cfg, Recipe("p", (step,)), groups).changes]
    assert all(re.search(reason, found) if reason else not found for found in each(reasons))


def test_a_step_that_changes_nothing_is_no_step(whole):
    with pytest.raises(PruneError, match="step 'nothing' of the recipe changes no layer"):
        what_if(whole[0], Recipe("p", (STEPS["nothing"],)), whole[1])


def test_a_config_that_builds_no_model_is_said(whole):
    wrong = Step("wrong", {"MODEL.FPN.IN_FEATURES": ["res2"]})
    with pytest.raises(PruneError, match="the configuration builds no model"):
        what_if(whole[0], Recipe("p", (wrong,)), whole[1])
