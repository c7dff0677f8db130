"""Reading checkpoints: any format, nothing executed, one clear error for what is damaged."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

from d2prune.checkpoint.reader import read_checkpoint, read_pickle, read_spec
from d2prune.errors import PruneError
from tests.checkpoint.hostile import Chained, Listed, Reduce, build, places, write
from tests.each import each

KINDS = ("zip", "legacy", "pkl")


def reader(kind):
    return read_pickle if kind == "pkl" else read_checkpoint


def contents():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "half": torch.arange(4, dtype=torch.bfloat16),
        "parameter": nn.Parameter(torch.ones(2)),
        "array": np.arange(6, dtype=np.float64).reshape(2, 3),
        "scalar": np.float32(0.5),
        "plain": [1, 2.5, "three", None, (True, b"bytes"), {4, 5}, torch.Size([1, 2])],
        "dtype": torch.float16,
    }


def attempt(path, kind="zip"):
    """Whether the file reads; any error but PruneError fails the test."""
    try:
        reader(kind)(path)
    except PruneError as error:
        assert str(path) in str(error)
        return False
    return True


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_tensors_and_plain_data_come_back(tmp_path, kind):
    data = contents()
    write(data, tmp_path / "x.pth", kind)
    read = read_checkpoint(tmp_path / "x.pth")
    assert read.keys() == data.keys() and read["plain"] == data["plain"]
    assert all(torch.equal(read["model"][k], v) for k, v in each(data["model"].items()))
    assert read["optimizer"]["param_groups"] == data["optimizer"]["param_groups"]
    assert torch.equal(read["half"], data["half"]) and read["dtype"] is torch.float16
    assert isinstance(read["parameter"], nn.Parameter) and read["parameter"].requires_grad
    assert np.array_equal(read["array"], data["array"]) and read["scalar"] == data["scalar"]


def test_a_bare_state_dict_is_a_model(tmp_path):
    torch.save(nn.Linear(2, 1).state_dict(), tmp_path / "x.pth")
    assert set(read_checkpoint(tmp_path / "x.pth")["model"]) == {"weight", "bias"}


def test_tensors_stay_shared(tmp_path):
    tensor = torch.ones(3)
    torch.save({"model": {"a": tensor, "b": tensor}}, tmp_path / "x.pth")
    model = read_checkpoint(tmp_path / "x.pth")["model"]
    assert model["a"].data_ptr() == model["b"].data_ptr()


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_seed_style_struct_is_skipped(tmp_path, kind):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ModuleList([nn.ReLU()]))
    write({"struct": model, "model": model.state_dict()}, tmp_path / "x.pth", kind)
    read = read_checkpoint(tmp_path / "x.pth")
    assert set(read) == {"model"}
    assert all(torch.equal(read["model"][k], v) for k, v in each(model.state_dict().items()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attack", [Reduce, Chained, Listed, build])
@pytest.mark.parametrize("place", places(None))
def test_nothing_is_executed(tmp_path, monkeypatch, kind, attack, place):
    marker, path = tmp_path / "executed", tmp_path / f"x.{kind}"
    monkeypatch.syspath_prepend(tmp_path)
    evil = build(marker, tmp_path) if attack is build else attack(marker)
    write(places(evil)[place], path, kind)
    assert attempt(path, kind) == (place != "top") and not marker.exists()
    with pytest.raises(Exception) if attack is Listed else monkeypatch.context():
        # The control: such a file does run when it is unpickled as it asks to be.
        (pickle.loads(path.read_bytes()) if kind == "pkl" else torch.load(path, weights_only=False))
    assert marker.exists()


def test_modules_that_a_file_names_are_not_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "d2prune_not_imported.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "x.pkl").write_bytes(b"(dS'model'\n(dsS'a'\ncd2prune_not_imported\nThing\n)\x81s.")
    assert read_pickle(tmp_path / "x.pkl")["model"] == {} and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_are_refused(tmp_path, kind):
    data = contents()
    write(data["array"] if kind == "pkl" else data, tmp_path / "whole", kind)
    whole = (tmp_path / "whole").read_bytes()
    cuts = {0, 1, 2, 4, 10, 22, 64, 100, len(whole) - 1, len(whole) - 2, len(whole) - 22}
    for cut in each(cuts | set(range(7, len(whole), max(1, len(whole) // 60)))):
        (tmp_path / "x.pth").write_bytes(whole[:cut])
        assert not attempt(tmp_path / "x.pth", kind), f"{cut} of {len(whole)} bytes were read"


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes_raise_nothing_but_prune_error(tmp_path, kind):
    write({"model": {"w": torch.ones(3)}, "plain": [1, "a"]}, tmp_path / "whole", kind)
    whole, chance = (tmp_path / "whole").read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(min(len(damaged), 900))] = chance.randrange(128)
        (tmp_path / "x.pth").write_bytes(damaged)
        attempt(tmp_path / "x.pth", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_refused(tmp_path, kind):
    chance = random.Random(1)
    noise = [
        b"",
        b"\n",
        b"MODEL:\n  WEIGHTS: x\n",
        b"<html>404</html>",
        b"\x80\x02.",
        b"PK\x05\x06" + bytes(18),
    ]
    for content in noise + [chance.randbytes(200) for _ in range(60)]:
        (tmp_path / "x.pth").write_bytes(content)
        assert not attempt(tmp_path / "x.pth", kind)


@pytest.mark.parametrize("data", [5, [1, 2], "text", None, torch.ones(2), nn.Linear(1, 1)])
def test_a_file_that_holds_no_dict_is_refused(tmp_path, data):
    torch.save(data, tmp_path / "x.pth")
    assert not attempt(tmp_path / "x.pth")


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "missing.pth", tmp_path):
        for read in (read_checkpoint, read_pickle, read_spec):
            with pytest.raises(PruneError, match="MODEL.WEIGHTS"):
                read(path)


def test_the_spec_is_found_only_where_it_is(saved, result, tmp_path):
    assert read_spec(saved) == result.spec
    torch.save({"model": {}}, tmp_path / "x.pth")
    assert read_spec(tmp_path / "x.pth") is None


@pytest.mark.parametrize("spec", [{}, {"version": 99, "base": "A", "layers": {}}, [], "text", 0])
def test_a_malformed_spec_is_refused(tmp_path, spec):
    torch.save({"model": {}, "prune_spec": spec}, tmp_path / "x.pth")
    with pytest.raises(PruneError):
        read_spec(tmp_path / "x.pth")
