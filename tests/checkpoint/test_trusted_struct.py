"""MODEL.PRUNING.TRUST_STRUCT opens the files of forks that save a whole module and no spec."""

import pytest
import torch

from d2prune.checkpoint import PruningCheckpointer, build_model
from tests.each import each
from tests.tiny_blendmask import tiny_cfg, tiny_model


@pytest.fixture
def narrow():
    return tiny_model("MODEL.BASIS_MODULE.CONVS_DIM", 8)


@pytest.fixture
def path(narrow, tmp_path):
    torch.save({"struct": narrow, "model": narrow.state_dict()}, tmp_path / "fork.pth")
    return str(tmp_path / "fork.pth")


def test_a_forks_struct_is_used_only_when_trusted(path):
    plain = build_model(tiny_cfg("MODEL.WEIGHTS", path))
    assert plain.basis_module.tower[0][0].out_channels == 16
    trusted = build_model(tiny_cfg("MODEL.WEIGHTS", path, "MODEL.PRUNING.TRUST_STRUCT", True))
    assert trusted.basis_module.tower[0][0].out_channels == 8


def test_what_is_saved_of_it_holds_the_module_again(narrow, path, tmp_path):
    cfg = tiny_cfg("MODEL.WEIGHTS", path, "MODEL.PRUNING.TRUST_STRUCT", True)
    PruningCheckpointer(build_model(cfg), str(tmp_path)).save("model_final")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    again = build_model(cfg)
    assert all(torch.equal(v, narrow.state_dict()[k]) for k, v in each(again.state_dict().items()))
