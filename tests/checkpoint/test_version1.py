"""A checkpoint that the first trainer wrote (spec version 1, the whole module beside it) loads."""

from __future__ import annotations

from pathlib import Path

import torch

import d2prune
from d2prune.checkpoint import read_checkpoint, read_spec
from d2prune.checkpoint.pruned_model import trusted_struct
from d2prune.rebuild import spec_of_model
from tests.each import each
from tests.tiny_blendmask import detect, tiny_model

FILE = Path(__file__).parents[1] / "fixtures" / "version_1" / "blendmask.pth"


def test_a_trainers_checkpoint_loads_and_runs():
    spec = read_spec(FILE)
    assert spec.version == 1 and spec.base == "BlendMask" and len(spec.layers) > 20
    model = d2prune.load(FILE, tiny_model()).eval()
    weights = read_checkpoint(FILE)["model"]
    assert len(weights) == len(model.state_dict())
    assert all(torch.equal(model.state_dict()[name], w.float()) for name, w in each(weights.items()))
    detect(model)


def test_its_struct_is_unpickled_where_that_is_trusted():
    struct = trusted_struct(str(FILE))
    assert (
        type(struct).__name__ == "BlendMask" and spec_of_model(struct).to_json() == read_spec(FILE).to_json()
    )
