"""d2prune where neither Detectron2 is installed nor what only Detectron2's users need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import d2prune
from tests.each import each
from tests.meta.test_packaging import extra, required
from tests.plain_net import X, net

ROOT = Path(__file__).resolve().parents[1]
SETTING = """
import sys

ABSENT = set(sys.argv.pop(1).split())

class Finder:  # as sys.meta_path's own, but blind to some packages
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Finder, sys.meta_path)
import torch
from torch import nn
import d2prune
from tests.plain_net import X, net
"""
ABSENT = {"detectron2", "adet"} | (extra("detectron2") - required())


def run(script: str, *args: str) -> str:
    command = [sys.executable, "-c", SETTING + script, " ".join(ABSENT), *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_road_of_a_plain_model(tmp_path):
    run(
        """
import numpy as np

@d2prune.register_criterion("first")
def first(model, group):
    return np.arange(group.units)

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(16))
    def forward(self, x):
        return x * self.gain[:, None, None]

d2prune.register_layer(Scale, out={"gain": 0})

def scaled():
    model = net()
    model.insert(1, Scale())
    return model

for build, criterion in ((net, "magnitude"), (scaled, "first")):
    model = build()
    result = d2prune.prune(model, 0.5, example_inputs=X, criterion=criterion)
    assert result.proof.exact and result.after.macs < result.before.macs
    assert any(row.status == "pruned" for row in result.coverage)
    d2prune.save(result, sys.argv[1])
    loaded = d2prune.load(sys.argv[1], build())
    assert torch.equal(loaded(X), result.model(X))
    spec = d2prune.PruneSpec.from_json(result.spec.to_json())
    rebuilt = d2prune.rebuild(build(), spec)
    assert torch.equal(rebuilt(X), result.model(X))
    with d2prune.traceable(model, X) as f:
        assert f(X)[0].requires_grad
assert not {name.partition(".")[0] for name in sys.modules} & ABSENT
""",
        str(tmp_path / "pruned.pth"),
    )


@pytest.mark.parametrize("name", [n for n in d2prune.__all__ if n in d2prune._OF_DETECTRON2])
def test_with_detectron2_all_names_are_there(name):
    assert callable(getattr(d2prune, name)) and name in dir(d2prune)


def test_with_detectron2_an_import_fills_its_registries():
    script = """
import d2prune
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY
from d2prune.adapters.base import _ADAPTERS
assert {"PrunedModel", "BlendMask", "OneStageDetector"} <= {name for name, _ in META_ARCH_REGISTRY}
assert "build_lsknet_fpn_backbone" in BACKBONE_REGISTRY and "RotatedRPN" in PROPOSAL_GENERATOR_REGISTRY
assert "digits_val" in DatasetCatalog.list() and META_ARCH_REGISTRY.get("GeneralizedRCNN") in _ADAPTERS
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=ROOT)


def test_what_needs_detectron2_says_so_in_one_line():
    said = json.loads(
        run("""
import json
said = {}
for name in d2prune._OF_DETECTRON2:
    try:
        getattr(d2prune, name)
    except d2prune.PruneError as error:
        assert isinstance(error, ImportError)
        said[name] = str(error)
from d2prune import *
try:
    from d2prune import PruneTrainer
except ImportError as error:
    said["from"] = str(error)
try:
    d2prune.NoSuchName
except AttributeError:
    print(json.dumps(said))
""")
    )
    assert len(said) == len(d2prune._OF_DETECTRON2) + 1
    for name in each(d2prune._OF_DETECTRON2):
        assert said[name].startswith(f"d2prune.{name} needs Detectron2")
    for text in each(said.values()):
        assert "\n" not in text and "No module named 'detectron2'" in text
        assert "pip install d2prune[detectron2]" in text and "tools/install_detectron2.py" in text


def test_a_file_is_the_same_whoever_wrote_it(tmp_path):
    here, there = tmp_path / "here.pth", tmp_path / "there.pth"
    script = """
result = d2prune.prune(net(), 0.5, example_inputs=X)
d2prune.save(result, sys.argv[1])
print(d2prune.load(sys.argv[2], net())(X).tolist() if sys.argv[2:] else "")
"""
    run(script, str(there))
    result = d2prune.prune(net(), 0.5, example_inputs=X)
    d2prune.save(result, here)
    wanted = result.model(X)
    assert torch.equal(d2prune.load(there, net())(X), wanted)
    assert torch.allclose(torch.tensor(json.loads(run(script, str(there), str(here)))), wanted)
    assert d2prune.checkpoint.read_spec(here) == d2prune.checkpoint.read_spec(there)
    files = [torch.load(path, weights_only=False) for path in (here, there)]
    assert files[0].keys() == files[1].keys() == {"model", "prune_spec", "struct"}
