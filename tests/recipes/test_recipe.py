"""Recipes: what their files may hold, what they set, and the configuration they become."""

from __future__ import annotations

import pytest

import d2prune
from d2prune import PruneError
from d2prune.config import read_config
from d2prune.recipes import Recipe, Step, narrowed, read_recipe
from d2prune.recipes.recipe import changes_of, write_narrowed
from tests.tiny_lsknet import CONFIGS, tiny_lsk_cfg

RECIPES = sorted(str(path) for path in (CONFIGS / "recipes").glob("*.yaml"))
FPN = Step("fpn", {"MODEL.FPN.OUT_CHANNELS": 24})


@pytest.mark.parametrize(
    "text, says",
    [
        (None, "does not exist"),
        ("a: [", "line 1: while parsing"),
        ("", "expected steps"),
        ("- a", "expected steps"),
        ("a: 3", "expected steps"),
        ("a: {}", "expected steps"),
        ("a: {SOLVER.BASE_LR: 1}", "step 'a': SOLVER.BASE_LR is no key of the model"),
    ],
)
def test_what_is_no_plan_is_refused(text, says, tmp_path):
    path = tmp_path / "p.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PruneError, match=f"--recipe .*{says}"):
        read_recipe(str(path))


@pytest.mark.parametrize("path", RECIPES)
def test_the_plans_that_ship_fit_the_config(path):
    recipe = read_recipe(path)
    cfg = tiny_lsk_cfg("lsk_s_fpn_1x_dota_le90")
    assert recipe.steps and narrowed(cfg, recipe.steps) != cfg


def test_plan_b_is_plan_c_without_the_gates():
    b, c = (read_recipe(str(CONFIGS / "recipes" / f"{name}.yaml")) for name in "BC")
    assert (b.name, b.steps) == ("B", c.steps[:-1])


def test_unknown_keys_are_named():
    recipe = Recipe("p", (Step("a", {"MODEL.LSKNET.WIDTH": 3}),))
    with pytest.raises(PruneError, match="recipe: .*LSKNET.WIDTH"):
        narrowed(tiny_lsk_cfg(), recipe.steps)


def test_the_rpn_keeps_its_channels_unless_it_is_named():
    cfg = tiny_lsk_cfg()
    assert narrowed(cfg, [FPN]).MODEL.RPN.CONV_DIMS == [32]
    asked = Step("rpn", {"MODEL.RPN.CONV_DIMS": [-1]})
    assert narrowed(cfg, [FPN, asked]).MODEL.RPN.CONV_DIMS == [-1]
    assert cfg.MODEL.RPN.CONV_DIMS == [-1]


def test_what_is_written_reads_as_what_was_planned(tmp_path):
    file = str(CONFIGS / "faster_rcnn_lsk_s_fpn_1x.yaml")
    cfg = read_config(d2prune.get_cfg(), file)
    path = tmp_path / "deep" / "narrow.yaml"
    write_narrowed(file, changes_of(cfg, [FPN]), str(path))
    assert read_config(d2prune.get_cfg(), str(path)) == narrowed(cfg, [FPN])
