"""Files of every version of the spec load, and the models compute what they did when they were written.

tests/fixtures/write.py wrote them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import d2prune
from d2prune.checkpoint import read_checkpoint, read_spec
from d2prune.checkpoint.pruned_model import trusted_struct
from d2prune.core.cut.spec import VERSION, PruneSpec
from d2prune.rebuild import rebuild, spec_of_model
from tests.each import each
from tests.fixtures.models import MODELS, dense_outputs
from tests.tiny_blendmask import detect, tiny_model

FIXTURES = Path(__file__).parents[1] / "fixtures"
VERSIONS = range(1, VERSION + 1)
PLAIN = [
    (int(spec.parent.name.removeprefix("version_")), spec.stem)
    for spec in sorted(FIXTURES.glob("version_*/*.json"))
]


def folder(version):
    return FIXTURES / f"version_{version}"


def close(found, expected):
    assert found.keys() == expected.keys() and len(found) > 1
    for name, tensor in each(expected.items()):
        torch.testing.assert_close(found[name], tensor)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_has_files_that_use_all_it_can_say(version):
    names = {name for number, name in PLAIN if number == version}
    specs = [PruneSpec.from_json((folder(version) / f"{name}.json").read_text()) for name in names]
    used = {field for spec in specs for field, value in vars(spec).items() if value}
    used |= {part for spec in specs for keep in spec.layers.values() for part, v in vars(keep).items() if v}
    said = {1: {"corrections"}, 2: {"attributes", "scales", "calls", "written_by", "groups"}}
    assert used == {"base", "version", "layers", "widths", "out", "inp", *said[version]}


@pytest.mark.parametrize("version, name", PLAIN)
def test_checkpoints_and_specs_load(version, name):
    expected = torch.load(folder(version) / f"{name}_expected.pt")
    spec = PruneSpec.from_json((folder(version) / f"{name}.json").read_text())
    assert spec.version == version and PruneSpec.from_json(spec.to_json()) == spec
    loaded = d2prune.load(folder(version) / f"{name}.pth", MODELS[name]()).eval()
    rebuilt = rebuild(MODELS[name](), spec).eval()
    rebuilt.load_state_dict(loaded.state_dict())
    for model in (loaded, rebuilt):
        torch.testing.assert_close(model(expected["input"]), expected["output"])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_trainers_checkpoint_loads_and_runs(version):
    file = folder(version) / "blendmask.pth"
    spec = read_spec(file)
    assert spec.version == version and spec.base == "BlendMask" and len(spec.layers) > 20
    model = d2prune.load(file, tiny_model()).eval()
    weights = read_checkpoint(file)["model"]
    assert len(weights) == len(model.state_dict())
    assert all(torch.equal(model.state_dict()[name].cpu(), w.float()) for name, w in each(weights.items()))
    detect(model)
    close(dense_outputs(model), torch.load(folder(version) / "blendmask_expected.pt"))


@pytest.mark.parametrize("version", VERSIONS)
def test_its_struct_is_unpickled_where_that_is_trusted(version):
    file = folder(version) / "blendmask.pth"
    struct = trusted_struct(str(file))
    assert type(struct).__name__ == "BlendMask"
    assert spec_of_model(struct).to_json() == read_spec(file).to_json()
    for name in ("pixel_mean", "pixel_std"):  # version 1's file was made smaller: all of it is float16
        setattr(struct, name, getattr(tiny_model(), name))
    close(dense_outputs(struct), torch.load(folder(version) / "blendmask_expected.pt"))
