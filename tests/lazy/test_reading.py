"""YAML as LazyConfig.save writes it loads as by Detectron2, but for what its tags would run."""

from __future__ import annotations

import pytest
from detectron2 import model_zoo
from detectron2.config import LazyConfig
from detectron2.modeling.backbone.resnet import BottleneckBlock
from omegaconf import OmegaConf, SCMode
from torch import nn

from d2prune.errors import PruneError
from d2prune.lazy.config import read_lazy_config
from d2prune.lazy.reading import read_lazy_yaml

SHAPE = "!!python/object:detectron2.layers.shape_spec.ShapeSpec"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pruned.yaml"


@pytest.mark.parametrize(
    "name",
    [
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py",
        "COCO-InstanceSegmentation/mask_rcnn_regnetx_4gf_dds_fpn_1x.py",
        "COCO-Detection/fcos_R_50_FPN_1x.py",
    ],
)
def test_what_lazy_config_saves_loads_as_by_detectron2(path, name):
    config = model_zoo.get_config(name)
    LazyConfig.save(config, str(path))
    assert "!!python/" in path.read_text()
    ours, theirs = read_lazy_yaml(str(path)), LazyConfig.load(str(path))
    assert ours == theirs
    both = [
        OmegaConf.to_container(config, structured_config_mode=SCMode.INSTANTIATE) for config in (ours, theirs)
    ]
    assert both[0] == both[1], "also the ShapeSpecs' types"


def test_a_lazy_yaml_that_omegaconf_refuses_is_named(path):
    path.write_text("model: {? null : 1}\ntrain: {}\n")
    with pytest.raises(PruneError, match="pruned.yaml': Incompatible key type 'NoneType'"):
        read_lazy_config(str(path))


def test_a_network_class_is_a_class(path):
    path.write_text("a: !!python/name:detectron2.modeling.backbone.resnet.BottleneckBlock ''\n")
    assert read_lazy_yaml(str(path)).a is BottleneckBlock


@pytest.mark.parametrize(
    "name",
    ["os.mkdir", "builtins.eval", "torch.nn.functional.relu", "collections.OrderedDict", "torch.nn", "mkdir"],
)
def test_what_is_no_network_class_is_refused(path, name):
    path.write_text(f"a: !!python/name:{name} ''\n")
    expected = rf"plain values, or an nn.Module of an imported module \(--import\), which {name} is not"
    with pytest.raises(PruneError, match=f"line 1 holds the tag '!!python/name', .*; expected {expected}"):
        read_lazy_yaml(str(path))


def test_a_class_is_not_imported(path, tmp_path, monkeypatch):
    """Importing a module runs it."""
    text = "import os, torch\nos.mkdir(__file__ + 'x')\nclass Own(torch.nn.Module): pass\n"
    (tmp_path / "owned_by_test_reading.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    path.write_text("a: !!python/name:owned_by_test_reading.Own ''\n")
    with pytest.raises(PruneError, match="which owned_by_test_reading.Own is not"):
        read_lazy_yaml(str(path))
    assert not (tmp_path / "owned_by_test_reading.pyx").exists()


@pytest.mark.parametrize("fields", ["{channels: [1]}", "{depth: 1}", "{channels: x}", "{}", "[1]", "1"])
def test_a_shape_is_four_numbers(path, fields):
    path.write_text(f"a: {SHAPE} {fields}\n")
    with pytest.raises(PruneError, match="line 1 holds the tag '!!python/object', which is not executed"):
        read_lazy_yaml(str(path))


PARTIAL = """\
a: !!python/object/apply:functools.partial
  args: [{0}]
  state: !!python/tuple [{0}, !!python/tuple [], {1}, null]
"""
NORM = "!!python/name:torch.nn.modules.normalization.LayerNorm ''"


def test_a_network_class_with_arguments_is_data(path):
    path.write_text(PARTIAL.format(NORM, "{eps: 1.0e-06}"))
    made = read_lazy_yaml(str(path)).a
    assert made.func is nn.LayerNorm and made.keywords == {"eps": 1e-6} and not made.args


@pytest.mark.parametrize(
    ("kind", "named"), [("x", "{}"), (NORM, "{eps: [1]}"), (NORM, "1"), ("!!python/name:os.mkdir ''", "{}")]
)
def test_a_partial_of_anything_else_is_refused(path, kind, named):
    path.write_text(PARTIAL.format(kind, named))
    with pytest.raises(PruneError, match="which is not executed"):
        read_lazy_yaml(str(path))


def test_python_configs_are_said_to_be_run(tmp_path, caplog):
    (tmp_path / "c.py").write_text("model = dict()\ntrain = dict()\n")
    with caplog.at_level("INFO", logger="d2prune.lazy.config"):
        read_lazy_config(str(tmp_path / "c.py"))
    assert [r.message for r in caplog.records] == [f"'{tmp_path / 'c.py'}' is Python code and is run"]
