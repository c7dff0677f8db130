"""What users import, and that importing it changes nothing else."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.config import get_cfg as stock_cfg
from detectron2.engine import DefaultTrainer

import d2prune
from tests.each import each

CONTRACT = {
    "PruneError", "PruneResult", "PruneSpec", "PruneTrainer", "PruningCheckpointer", "PruningMixin",
    "add_prune_config", "get_cfg", "load", "prune", "rebuild", "register_adapter",
    "register_criterion", "register_layer", "register_operator", "save", "traceable",
}  # fmt: skip
KEYS = {
    "TARGET": "macs", "AMOUNT": 0.5, "BUDGET": "", "LATENCY_TABLE": "", "CRITERION": "auto",
    "ALLOCATION": "auto",
    "RATIOS": [],
    "CALIBRATION_IMAGES": -1, "REPAIR": "refit",
    "PROTECT": [], "INCLUDE": [], "MAX_RATIO": 0.75, "INPUT_SIZE": (), "VERIFY": True,
    "ALLOW_INEXACT": False, "KEEP_FROZEN": False, "SAVE_STRUCT": True, "TRUST_STRUCT": False,
    "SPEC": "", "BASE": "", "ROUND_TO": 8, "ALLOW_MISSING": [], "SKIP_UNREADABLE": False, "TIMING": 20.0,
}  # fmt: skip

UNTOUCHED = """
import sys, types
import detectron2.checkpoint, detectron2.engine, detectron2.evaluation, detectron2.model_zoo
import detectron2.modeling, fvcore.nn, torch, torchvision
from detectron2.config import get_cfg

def watched():
    return [m for n, m in sys.modules.items() if m and n.split(".")[0] in ("detectron2", "fvcore")] + [
        torch.nn, torch.nn.functional, torch.nn.Module, torch.Tensor, torchvision.ops, CfgNode]

def attributes(thing):
    lazy = {"__annotations__", "__warningregistry__", "__abstractmethods__", "_abc_impl", "__doc__"}
    return {k: id(v) for k, v in vars(thing).items() if k not in lazy and not isinstance(v, types.ModuleType)}

def everything():
    found = {}
    for thing in watched():
        name = getattr(thing, "__qualname__", thing.__name__)
        found[name] = attributes(thing)
        for k, v in vars(thing).items():
            if isinstance(v, type) and getattr(v, "__module__", "").split(".")[0] in ("detectron2", "fvcore"):
                found[f"{v.__module__}.{v.__qualname__}"] = attributes(v)
    return found

from detectron2.config import CfgNode
config, before, keep = get_cfg().dump(), everything(), watched()
import d2prune
after = everything()
assert get_cfg().dump() == config, "the default config changed"
changed = {
    f"{name}.{key}" for name, held in before.items() for key in held.keys() | after[name].keys()
    if held.get(key) != after[name].get(key)
}
print(sorted(changed))
assert not changed
"""


def test_every_name_of_the_contract_is_there():
    assert set(d2prune.__all__) >= CONTRACT
    assert all(getattr(d2prune, name, None) is not None for name in each(d2prune.__all__))


def test_prune_has_the_contracts_parameters():
    parameters = inspect.signature(d2prune.prune).parameters
    names = [
        "model", "amount", "target", "criterion", "allocation", "ratios", "protect", "round_to",
        "example_inputs", "forward_fn", "allow_inexact", "verify",
    ]  # fmt: skip
    assert list(parameters)[: len(names)] == names
    assert all(p.kind is p.KEYWORD_ONLY for p in each(list(parameters.values())[len(names) :]))
    defaults = {name: parameters[name].default for name in names[1:]}
    assert not defaults.pop("ratios") and tuple(defaults.pop("protect")) == ()
    assert defaults == {
        "amount": 0.5, "target": "macs", "criterion": "auto", "allocation": "auto",
        "round_to": 1, "example_inputs": None, "forward_fn": None, "allow_inexact": False,
        "verify": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("function", "names"),
    [("rebuild", ["model", "spec"]), ("save", ["result", "path"]), ("load", ["path", "model"]),
     ("traceable", ["model"]), ("add_prune_config", ["cfg"]), ("get_cfg", [])],
)  # fmt: skip
def test_the_other_functions_have_the_contracts_parameters(function, names):
    assert list(inspect.signature(getattr(d2prune, function)).parameters)[: len(names)] == names


def test_no_default_is_mutable():
    for name in each(d2prune.__all__):
        if inspect.isfunction(function := getattr(d2prune, name)):
            defaults = [p.default for p in inspect.signature(function).parameters.values()]
            assert not [d for d in defaults if isinstance(d, (list, dict, set))], name


def test_the_results_fields():
    fields = d2prune.PruneResult.__dataclass_fields__
    assert set(fields) >= {"model", "spec", "coverage", "proof", "before", "after", "repair", "reference"}


def test_an_error_is_a_value_error():
    assert issubclass(d2prune.PruneError, ValueError)


def test_the_classes_are_detectron2s():
    assert issubclass(d2prune.PruningCheckpointer, DetectionCheckpointer)
    assert d2prune.PruneTrainer.__mro__[1:3] == (d2prune.PruningMixin, DefaultTrainer)


def test_the_configs_keys_and_defaults():
    cfg = d2prune.get_cfg()
    assert cfg.MODEL.PRUNE is False and cfg.MODEL.FINETUNE is False
    assert dict(cfg.MODEL.PRUNING) == KEYS
    assert len(KEYS) <= 30, "the contract allows 30 keys, those of distillation included"


def test_add_prune_config_adds_only_its_keys_and_only_once():
    cfg, stock = stock_cfg(), stock_cfg()
    d2prune.add_prune_config(cfg)
    cfg.MODEL.PRUNING.AMOUNT = 0.3
    d2prune.add_prune_config(cfg)
    assert cfg.MODEL.PRUNING.AMOUNT == 0.3, "values set before must stay"
    for key in ("PRUNE", "FINETUNE", "PRUNING"):
        del cfg.MODEL[key]
    assert cfg.dump() == stock.dump()


def test_add_prune_config_takes_any_config():
    cfg = CfgNode({"MODEL": CfgNode({"OWN": 1})})
    d2prune.add_prune_config(cfg)
    assert cfg.MODEL.OWN == 1 and dict(cfg.MODEL.PRUNING) == KEYS


def test_a_file_with_a_key_that_is_gone_is_read(tmp_path, caplog):
    cfg, path = d2prune.get_cfg(), tmp_path / "old.yaml"
    path.write_text("VERSION: 2\nMODEL: {PRUNING: {FADE: 0.01, AMOUNT: 0.3}}\n")
    cfg.merge_from_file(str(path))
    assert dict(cfg.MODEL.PRUNING) == {**KEYS, "AMOUNT": 0.3}
    assert "MODEL.PRUNING.FADE" in caplog.text, "it does nothing, and that is said"


def test_two_configs_share_nothing():
    one, other = d2prune.get_cfg(), d2prune.get_cfg()
    one.MODEL.PRUNING.PROTECT.append("x")
    assert other.MODEL.PRUNING.PROTECT == []


def test_importing_changes_nothing_but_registries():
    subprocess.run(
        [sys.executable, "-c", UNTOUCHED],
        check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
