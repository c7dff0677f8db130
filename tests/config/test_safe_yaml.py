"""Whatever YAML d2prune reads, its tags run nothing; tuples and what else is plain data still loads."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import yaml
from detectron2 import model_zoo
from detectron2.config import LazyConfig
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.modeling import build_model

import d2prune.checkpoint  # noqa: F401  (registers PrunedModel)
from d2prune.config import get_cfg, read_config
from d2prune.config.safe_yaml import read_mapping, read_yaml
from d2prune.errors import PruneError
from d2prune.lazy.config import read_lazy_config
from d2prune.recipes import read_recipe


def of_config(path):
    read_config(get_cfg(), str(path))


def of_base(path):
    top = path.with_name("top.yaml")
    top.write_text(f"_BASE_: {path.name}\nVERSION: 2\n")
    read_config(get_cfg(), str(top))


def beside_weights(path):
    """The user's own config says nothing but whose weights these are."""
    cfg = detectron2_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS = "PrunedModel", str(path.with_name("model_final.pth"))
    build_model(cfg)


def of_lazy_config(path):
    read_lazy_config(str(path))


def of_recipe(path):
    read_recipe(str(path))


PLACES = [of_config, of_base, beside_weights, of_lazy_config, of_recipe]
RUN = [
    "!!python/object/apply:os.mkdir ['{made}']",
    "!!python/object/new:os.mkdir ['{made}']",
    "!!python/object/apply:eval [\"__import__('os').mkdir('{made}')\"]",
    "[1, {{a: !!python/object/apply:os.mkdir {{args: ['{made}']}}}}]",
    "&x !!python/object/apply:os.mkdir ['{made}']",
]
NAMED = [
    "!!python/name:os.mkdir ''",
    "!!python/module:os ''",
    "!!python/name:torch.nn.ReLU ''",
    "!!python/object:detectron2.layers.shape_spec.ShapeSpec {channels: 1}",
    "!!python/tuple 3",
    "!own 3",
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pruned.yaml"


@pytest.mark.parametrize("read", PLACES)
@pytest.mark.parametrize("text", RUN)
def test_nothing_is_executed(path, read, text):
    path.write_text("# 1\nVERSION: 2\nEVIL: " + text.format(made=path.with_name("made")))
    with pytest.raises(PruneError) as caught:
        read(path)
    assert f"'{path}' line 3 holds the tag '!!python/object/" in str(caught.value)
    assert str(caught.value).endswith("', which is not executed; expected plain values")
    assert "\n" not in str(caught.value) and "mkdir" not in str(caught.value)
    assert not path.with_name("made").exists()


@pytest.mark.parametrize("text", NAMED)
def test_other_tags_are_named(path, text):
    path.write_text(f"a: {text}")
    with pytest.raises(
        PruneError, match=r"line 1 holds the tag '!(!python/(name|module|object|tuple)|own)', w"
    ):
        read_yaml(str(path))


@pytest.mark.parametrize("read", PLACES)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- a\n", "pruned.yaml' holds a list; expected keys and values"),
        (b"", "pruned.yaml' holds nothing; expected keys and values"),
        (b"text", "pruned.yaml' holds a str; expected keys and values"),
        (b"a: 1\nb: [\n", "pruned.yaml' line 3: while parsing a flow node, expected the node content"),
        (b"a: 1\n---\nb: 2\n", "pruned.yaml' line 2: expected a single document in the stream, but found"),
        (b"a: \xff\n", "pruned.yaml' is not UTF-8 text"),
        (b"a: 1\nb: \0\n", r"pruned.yaml' line 2: the character '\\x00' is no text"),
        (b"a: 1\nb: 2024-13-01\n", "pruned.yaml' line 2: expected a value of tag '!!timestamp'"),
        (b"a: !!int b\n", "pruned.yaml' line 1: expected a value of tag '!!int'"),
        (b"a: &a\n  b: *a\n", r"pruned.yaml' line 2: \*a is a part of itself"),
        (b"a: *b\n", "pruned.yaml' line 1: found undefined alias 'b'"),
        (b"? [a]\n: 1\n", "pruned.yaml' line 1: while constructing a mapping, found unhashable key"),
        (b"a: " + b"[" * 3000, "pruned.yaml' is nested too deeply"),
    ],
)
def test_what_is_no_config_is_named(path, read, content, said):
    path.write_bytes(content)
    if read is of_recipe and "expected keys and values" in said and "holds" in said:
        said = "--recipe '.*pruned.yaml': expected steps, each a name"
    with pytest.raises(PruneError, match=said) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(PruneError, match=f"'{tmp_path}' can't be read: Is a directory"):
        read_yaml(str(tmp_path))
    with pytest.raises(PruneError, match="no.yaml' can't be read: No such file or directory"):
        read_yaml(str(tmp_path / "no.yaml"))


def test_plain_values_are_pyyamls(path):
    text = "a: [1, 2.5, on, null, 2024-01-02, &x {b: c}]\nd: *x\ne: {<<: *x, f: (1, 2)}\ng: é\n"
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert read_mapping(str(path)) == yaml.safe_load(text)
    assert read_yaml(str(path))["a"][4] == datetime.date(2024, 1, 2)


def test_tuples_load(path):
    path.write_text("a: !!python/tuple [1, !!python/tuple [x], {b: [2]}]\n")
    assert read_yaml(str(path)) == {"a": (1, ("x",), {"b": [2]})} == yaml.unsafe_load(path.read_text())
    path.write_text("VERSION: 2\nINPUT:\n  MIN_SIZE_TRAIN: !!python/tuple [32, 64]\n  MAX_SIZE_TEST: 9\n")
    assert read_config(get_cfg(), str(path)).INPUT.MIN_SIZE_TRAIN == (32, 64)
    path.write_text("model: {a: !!python/tuple [1, 2]}\ntrain: {}\n")
    assert read_lazy_config(str(path)).model == LazyConfig.load(str(path)).model


def test_retinanets_anchors_load_and_no_other_expression(path):
    file = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    stock = get_cfg()
    stock.merge_from_file(file)
    assert read_config(get_cfg(), file) == stock and len(stock.MODEL.ANCHOR_GENERATOR.SIZES) == 5
    base = Path(file).parents[1] / "Base-RetinaNet.yaml"
    path.write_text(base.read_text().replace("[32, 64,", "[len('x'), 64,"))
    with pytest.raises(PruneError, match="line 8 holds the tag '!!python/object/apply', which is not exec"):
        read_yaml(str(path))


@pytest.mark.parametrize("row", ["[{0}, {0}]", "{{a: {0}, b: {0}}}", "{{<<: [{0}, {0}]}}"])
@pytest.mark.parametrize("read", PLACES)
def test_aliases_of_aliases_are_counted_whole(path, read, row):
    """Thirty lines that stand for 2**30 values."""
    inner = "{x: 1}" if "<<" in row else "[x]"
    lines = [f"a{i}: &a{i} " + (row.format(f"*a{i - 1}") if i else inner) for i in range(30)]
    path.write_text("\n".join(lines))
    with pytest.raises(PruneError, match="line 1[0-9] holds more than 20000 values, aliases counted whole"):
        read(path)


def test_aliases_may_not_nest_values_too_deeply_either(path):
    path.write_text("\n".join(f"a{i}: &a{i} {{x: {f'*a{i - 1}' if i else 1}}}" for i in range(2000)))
    with pytest.raises(PruneError, match="pruned.yaml' is nested too deeply; expected keys and values"):
        read_yaml(str(path))


def test_as_many_values_as_a_config_may_hold_are_read(path):
    path.write_text("a: [" + "1, " * 19_000 + "]")
    assert len(read_yaml(str(path))["a"]) == 19_000
    path.write_text("a: [" + "1, " * 40_000 + "]")
    with pytest.raises(PruneError, match="line 1 holds more than 20000 values"):
        read_yaml(str(path))
