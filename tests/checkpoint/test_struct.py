"""The module inside a checkpoint: whole for those who trust it, inert for all others."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from pathlib import Path

import torch
from torch import nn

from d2prune.checkpoint import PruningCheckpointer, read_checkpoint
from d2prune.checkpoint.struct import Struct
from tests.each import each
from tests.tiny_blendmask import detect, equal, tiny_model

ROOT = Path(__file__).resolve().parents[2]


def through_file(module, tmp_path):
    state = {"model": module.state_dict(), "struct": Struct(module)}
    torch.save(state, tmp_path / "x.pth")
    return torch.load(tmp_path / "x.pth", map_location="cpu", weights_only=False)


def closure_net():
    """As AdelaiDet's BlendMask: a lambda that holds tensors of the module."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    weight = net[0].weight
    net.scale = lambda x: x * weight.sum()
    net.offset = torch.ones(2)
    net[1].weight.requires_grad_(False)
    return net


def test_a_lambda_keeps_its_hold_on_the_parameters(tmp_path):
    net = closure_net()
    struct = through_file(net, tmp_path)["struct"]
    x = torch.rand(1, 3, 2, 2)
    assert torch.equal(struct.scale(x), net.scale(x)) and torch.equal(struct(x), net(x))
    with torch.no_grad():
        struct[0].weight.zero_()
    assert struct.scale(x).abs().sum() == 0, "the lambda must see the module's own parameter"


def test_parameters_stay_parameters_and_frozen_ones_frozen(tmp_path):
    net = closure_net()
    struct = through_file(net, tmp_path)["struct"]
    wanted = {name: p.requires_grad for name, p in net.named_parameters()}
    assert {name: p.requires_grad for name, p in struct.named_parameters()} == wanted
    assert struct.state_dict().keys() == net.state_dict().keys()
    assert type(struct.offset) is torch.Tensor and not isinstance(struct.offset, nn.Parameter)


def test_state_dict_and_struct_share_their_tensors(tmp_path):
    read = through_file(closure_net(), tmp_path)
    for name, tensor in each(read["struct"].state_dict().items()):
        assert tensor.data_ptr() == read["model"][name].data_ptr(), name


def test_tied_parameters_stay_tied(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    struct = through_file(net, tmp_path)["struct"]
    assert struct[0].weight is struct[1].weight


def test_the_struct_in_a_file_detects_the_same(saved, result):
    struct = torch.load(saved, map_location="cpu", weights_only=False)["struct"]
    assert type(struct) is type(result.model) and struct.training == result.model.training
    assert equal(detect(struct.to(result.model.device)), detect(result.model))


def test_safe_readers_see_no_struct(saved):
    stock = torch.load(saved, map_location="cpu", weights_only=True)
    assert stock["struct"] is None and stock["model"] and stock["prune_spec"]
    assert "struct" not in read_checkpoint(saved)


def test_tensors_are_stored_once(saved, result, tmp_path):
    held = sum(t.numel() * t.element_size() for t in result.model.state_dict().values())
    without = PruningCheckpointer(result.model, str(tmp_path))
    without.save_struct = False
    without.save("x")
    assert saved.stat().st_size - (tmp_path / "x.pth").stat().st_size < held / 2
    assert "struct" not in torch.load(tmp_path / "x.pth", weights_only=False)


def test_only_pruned_models_have_a_struct(tmp_path):
    PruningCheckpointer(tiny_model(), str(tmp_path)).save("x")
    assert set(torch.load(tmp_path / "x.pth", weights_only=False)) == {"model"}


def test_what_cannot_be_pickled_costs_the_struct_and_not_the_checkpoint(result, tmp_path, log):
    model = copy.deepcopy(result.model)
    model.lock = threading.Lock()
    PruningCheckpointer(model, str(tmp_path)).save("x")
    assert "SAVE_STRUCT" in log.text
    read = read_checkpoint(tmp_path / "x.pth")
    assert equal(read["model"], {k: v.cpu() for k, v in model.state_dict().items()})
    assert read["prune_spec"] == result.spec.to_dict()


TWO_BUFFERS = """
import sys
import torch
from d2prune.checkpoint.struct import Struct
net = torch.nn.ReLU()
for name in ("mean", "deviation", "scale"):
    net.register_buffer(name, torch.ones(1), persistent=False)
torch.save({"struct": Struct(net)}, sys.argv[1])
assert type(net._non_persistent_buffers_set) is set
"""


def test_two_processes_write_the_same_bytes(tmp_path):
    written = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        words = [sys.executable, "-W", "ignore", "-c", TWO_BUFFERS, str(tmp_path / "x.pth")]
        subprocess.run(words, check=True, env=environment, cwd=ROOT)
        written.append((tmp_path / "x.pth").read_bytes())
    assert written[0] == written[1]
    struct = torch.load(tmp_path / "x.pth", weights_only=False)["struct"]
    assert type(struct._non_persistent_buffers_set) is set and not struct.state_dict()
