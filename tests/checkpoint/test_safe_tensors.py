"""safetensors files: weights and spec, written and read like the checkpoints, with nothing that could run."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import d2prune
from d2prune.checkpoint import PruningCheckpointer, build_model, read_checkpoint, read_spec
from d2prune.checkpoint.safe_tensors import read_safetensors, write_safetensors
from d2prune.errors import PruneError
from tests.each import each
from tests.tiny_blendmask import detect, equal, snapshot, tiny_cfg, tiny_model


@pytest.fixture(scope="module")
def shared(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("shared") / "new" / "x.safetensors"
    d2prune.save(result, path)
    return path


def test_load_gives_the_saved_model(shared, result):
    loaded = d2prune.load(shared, tiny_model(seed=1))
    assert loaded.prune_spec == result.spec
    assert equal(snapshot(loaded), snapshot(result.model)) and equal(detect(loaded), detect(result.model))


def test_the_file_is_plain_safetensors(shared, result):
    assert equal(load_file(shared), {k: v.cpu() for k, v in result.model.state_dict().items()})
    assert read_checkpoint(shared).keys() == {"model", "prune_spec"}
    assert read_spec(shared) == result.spec


def test_a_config_builds_and_fills_it(shared, result):
    cfg = tiny_cfg("MODEL.WEIGHTS", str(shared))
    model = build_model(cfg)
    PruningCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    assert equal(detect(model.eval()), detect(result.model))


def test_a_pruned_model_is_saved_like_its_result(shared, result, tmp_path):
    model = d2prune.load(shared, tiny_model(seed=1))
    nn.init.constant_(next(model.parameters()), 0.25)  # fine-tuned
    for name in ("x.pth", "x.safetensors"):
        d2prune.save(model, tmp_path / name)
        assert equal(snapshot(d2prune.load(tmp_path / name, tiny_model(seed=2))), snapshot(model))
    with pytest.raises(PruneError, match="this BlendMask was not pruned"):
        d2prune.save(tiny_model(), tmp_path / "y.pth")


def test_tensors_that_share_memory_come_back(tmp_path):
    given = torch.arange(12.0).reshape(3, 4)
    weights = {"a": given, "same": given, "turned": given.t(), "row": given[1], "empty": torch.zeros(0, 3)}
    write_safetensors({**weights, "count": torch.tensor(3)}, None, tmp_path / "x.safetensors")
    found = read_safetensors(tmp_path / "x.safetensors")["model"]
    assert all(torch.equal(found[name], tensor) for name, tensor in each(weights.items()))
    assert found["count"].dtype == torch.int64 and read_spec(tmp_path / "x.safetensors") is None


def rewritten(path, to, metadata):
    save_file(load_file(path), to, metadata)
    return to


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its 'prune_spec' is not a pruning spec"),
        ("[" * 100_000, "nested deeper"),
        ("[]", "'prune_spec' is a list; expected a dict"),
        ('{"version": 2}', "x.safetensors': "),
        ('{"version": 2, "version": 2}', "twice"),
    ],
)
def test_a_spec_that_is_none_is_refused(shared, tmp_path, text, message):
    path = rewritten(shared, tmp_path / "x.safetensors", {"prune_spec": text})
    model = tiny_model(seed=1)
    before = snapshot(model)
    with pytest.raises(PruneError, match=message):
        d2prune.load(path, model)
    assert equal(snapshot(model), before)


def header_of(data):
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header, rest):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def damaged(data):
    """Files that are none, each by its fault."""
    header, rest = header_of(data)
    name = next(key for key in header if key.endswith("weight"))
    start, end = header[name]["data_offsets"]
    yield "empty", b""
    yield "cut short", data[:-100]
    yield "a header of 2 ** 60 bytes", struct.pack("<Q", 2**60) + data[8:]
    yield "no JSON", data[:8] + b"}" + data[9:]
    yield (
        "beyond the end",
        with_header({**header, name: {**header[name], "data_offsets": [start, 2**50]}}, rest),
    )
    yield "backwards", with_header({**header, name: {**header[name], "data_offsets": [end, start]}}, rest)
    yield "a shape of another size", with_header({**header, name: {**header[name], "shape": [2**40]}}, rest)
    yield "an unknown kind", with_header({**header, name: {**header[name], "dtype": "OBJECT"}}, rest)


def test_a_damaged_file_is_refused(shared, tmp_path):
    path = tmp_path / "x.safetensors"
    model = tiny_model(seed=1)
    before = snapshot(model)
    for fault, data in each(list(damaged(shared.read_bytes()))):
        path.write_bytes(data)
        with pytest.raises(PruneError, match=r"x.safetensors' is not a readable"):
            d2prune.load(path, model)
            pytest.fail(fault)
    assert equal(snapshot(model), before)
    with pytest.raises(PruneError, match="does not exist"):
        d2prune.load(tmp_path / "none.safetensors", model)


def test_weights_are_checked_as_in_a_checkpoint(shared, tmp_path):
    weights, spec = load_file(shared), read_checkpoint(shared)["prune_spec"]
    name = next(key for key in weights if key.endswith("conv1.weight"))
    for changed, message in (
        (torch.full_like(weights[name], torch.nan), "NaN or infinity"),
        (weights[name].to(torch.int8), "holds torch.int8"),
        (weights[name][:1], "does not fit the pruned"),
    ):
        write_safetensors({**weights, name: changed}, spec, tmp_path / "x.safetensors")
        with pytest.raises(PruneError, match=message):
            d2prune.load(tmp_path / "x.safetensors", tiny_model(seed=1))
