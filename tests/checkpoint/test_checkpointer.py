"""PruningCheckpointer: what it writes, what it loads, and that it does either wholly."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import Conv2d
from torch import nn

from d2prune.checkpoint import PruningCheckpointer, build_from_cfg, read_checkpoint
from d2prune.errors import PruneError
from d2prune.rebuild import rebuild
from tests.checkpoint.hostile import Reduce, build, places, write
from tests.checkpoint.loading import load, untouched
from tests.each import each
from tests.tiny_blendmask import detect, equal, snapshot, tiny_model


class Unwilling:
    """Fails in the middle of torch.save."""

    def __reduce__(self):
        raise KeyboardInterrupt


@pytest.fixture
def fresh(result):
    """A model of the same spec, with other weights."""
    return rebuild(tiny_model(seed=1), result.spec)


def test_a_round_trip_is_bit_equal(saved, result, fresh):
    load(fresh, saved)
    assert equal(snapshot(fresh), snapshot(result.model))
    assert equal(detect(fresh), detect(result.model))


def test_extra_data_and_checkpointables_come_back(result, fresh, tmp_path):
    def optimizer(model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)

    first, second = optimizer(result.model), optimizer(fresh)
    model = copy.deepcopy(result.model)
    PruningCheckpointer(model, str(tmp_path), optimizer=first).save("x", iteration=7)
    second.param_groups[0]["lr"] = 5.0
    rest = PruningCheckpointer(fresh, str(tmp_path), optimizer=second).load(str(tmp_path / "x.pth"))
    assert rest["iteration"] == 7 and second.param_groups[0]["lr"] == 0.1


def test_the_last_checkpoint_is_named(result, tmp_path):
    checkpointer = PruningCheckpointer(result.model, str(tmp_path))
    assert not checkpointer.has_checkpoint()
    for name in ("one", "two"):
        checkpointer.save(name)
        assert (tmp_path / "last_checkpoint").read_text() == f"{name}.pth"
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "two.pth")


def test_without_a_folder_or_on_another_rank_nothing_is_written(result, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PruningCheckpointer(result.model).save("x")
    PruningCheckpointer(result.model, str(tmp_path), save_to_disk=False).save("x")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_file_before(result, tmp_path):
    checkpointer = PruningCheckpointer(result.model, str(tmp_path))
    checkpointer.save("x")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for name in ("x", "other"):
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save(name, extra=Unwilling())
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_subclass_keeps_its_say(result, tmp_path):
    class Own(DetectionCheckpointer):
        def save(self, name, **kwargs):
            super().save(f"own_{name}", mark="own", **kwargs)

    class Both(PruningCheckpointer, Own):
        pass

    Both(result.model, str(tmp_path)).save("x", iteration=3)
    read = read_checkpoint(tmp_path / "own_x.pth")
    assert (read["mark"], read["iteration"]) == ("own", 3) and "prune_spec" in read


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_seed_style_file_loads_into_its_model(tmp_path, kind):
    model, other = tiny_model(), tiny_model(seed=1)
    write({"struct": model, "model": model.state_dict()}, tmp_path / "x.pth", kind)
    load(other, tmp_path / "x.pth")
    assert equal(snapshot(other), snapshot(model))


def test_a_distributed_models_names_are_read(saved, result, fresh, tmp_path):
    data = read_checkpoint(saved)
    data["model"] = {f"module.{name}": tensor for name, tensor in data["model"].items()}
    torch.save(data, tmp_path / "x.pth")
    load(fresh, tmp_path / "x.pth")
    assert equal(snapshot(fresh), snapshot(result.model))


def zoo(model, **extra):
    """As Detectron2's model zoo writes a backbone: numpy arrays, names without their prefix."""
    prefix = "backbone.bottom_up."
    weights = {
        name.removeprefix(prefix): tensor.cpu().numpy()
        for name, tensor in model.state_dict().items()
        if name.startswith(prefix)
    }
    return {"model": weights, "__author__": "a zoo", "matching_heuristics": True, **extra}


def test_zoo_files_are_matched_by_name(tmp_path):
    model, other = tiny_model(), tiny_model(seed=1)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(zoo(model)))
    before = snapshot(other)
    load(other, tmp_path / "x.pkl")
    for name, tensor in each(snapshot(other).items()):
        source = snapshot(model) if name.startswith("backbone.bottom_up.") else before
        assert torch.equal(tensor, source[name]), name


@pytest.mark.parametrize("wrapped", [True, False])
def test_caffe2_blobs_are_matched_by_name(tmp_path, wrapped):
    model, other = tiny_model(), tiny_model(seed=1)
    blobs = {
        "conv1_w": "stem.conv1.weight",
        "res_conv1_bn_s": "stem.conv1.norm.weight",
        "res2_0_branch2a_w": "res2.0.conv1.weight",
        "res2_0_branch2a_bn_b": "res2.0.conv1.norm.bias",
    }
    source = snapshot(model.backbone.bottom_up)
    arrays = {blob: source[name].cpu().numpy() for blob, name in blobs.items()}
    arrays["conv1_w_momentum"] = np.zeros(1, np.float32)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"blobs": arrays} if wrapped else arrays, protocol=2))
    load(other, tmp_path / "x.pkl")
    for name in blobs.values():
        assert torch.equal(snapshot(other.backbone.bottom_up)[name], source[name]), name


def test_arrays_of_numpy_1_are_read(tmp_path):
    model, other = tiny_model(), tiny_model(seed=1)
    weights = {name: tensor.numpy(force=True) for name, tensor in model.state_dict().items()}
    whole = pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"}, protocol=2)
    (tmp_path / "x.pkl").write_bytes(whole.replace(b"numpy._core.", b"numpy.core."))
    load(other, tmp_path / "x.pkl")
    assert b"numpy.core." in (tmp_path / "x.pkl").read_bytes()
    assert equal(snapshot(other), snapshot(model))


def test_pycls_files_are_matched_by_name(tmp_path):
    model, other = tiny_model(), tiny_model(seed=1)
    state = model.backbone.bottom_up.state_dict()
    torch.save({"model_state": state, "epoch": 3, "cfg": "text"}, tmp_path / "x.pyth")
    load(other, tmp_path / "x.pyth")
    assert equal(snapshot(other.backbone.bottom_up), snapshot(model.backbone.bottom_up))
    torch.save({"model": state}, tmp_path / "y.pyth")
    untouched(other, tmp_path / "y.pyth", "y.pyth' holds no 'model_state'; expected a checkpoint of pycls")


@pytest.mark.parametrize("name", ["x.pth", "x.pkl", "x.pyth"])
def test_what_a_file_would_have_run_is_named(tmp_path, name):
    weights = {"w": np.ones(2), "evil": Reduce(tmp_path / "ran")}
    key = "model_state" if name.endswith(".pyth") else "model"
    write({key: weights, "__author__": "x"}, tmp_path / name, "pkl" if name.endswith(".pkl") else "zip")
    untouched(tiny_model(), tmp_path / name, r"entry: 'evil' \(a posix.mkdir, which is not executed")
    assert not (tmp_path / "ran").exists()


def test_a_query_asks_for_name_matching(tmp_path):
    model, other = tiny_model(), tiny_model(seed=1)
    state = model.backbone.bottom_up.state_dict()
    torch.save({"model": state}, tmp_path / "x.pth")
    load(other, f"{tmp_path / 'x.pth'}?matching_heuristics=True")
    assert equal(snapshot(other.backbone.bottom_up), snapshot(model.backbone.bottom_up))


def test_detectron2s_own_checkpointer_reads_the_file(saved, result, fresh):
    DetectionCheckpointer(fresh).load(str(saved))
    assert equal(snapshot(fresh), snapshot(result.model))


@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize("place", places(None))
def test_hostile_files_are_loaded_or_refused_but_never_run(tmp_path, monkeypatch, fresh, place, pruned):
    model = fresh if pruned else tiny_model()
    monkeypatch.syspath_prepend(tmp_path)
    for attack in (Reduce(tmp_path / "ran"), build(tmp_path / "ran", tmp_path)):
        torch.save(places(attack)[place], tmp_path / "x.pth")
        try:
            load(model, tmp_path / "x.pth")
        except PruneError:
            pass
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("weights", [5, None, "text", [1], {"a": 1}, {1: torch.ones(1)}, {"a": {}}])
def test_what_is_no_state_dict_is_refused(tmp_path, weights, fresh):
    torch.save({"model": weights}, tmp_path / "x.pth")
    untouched(fresh, tmp_path / "x.pth", "x.pth")
    untouched(nn.Sequential(Conv2d(1, 1, 1)), tmp_path / "x.pth", "'model'")


def test_a_damaged_file_is_refused(saved, fresh, tmp_path):
    whole = saved.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x.pth").write_bytes(whole[:cut])
        untouched(fresh, tmp_path / "x.pth", "x.pth' is not a readable checkpoint")


@pytest.mark.parametrize("name", ["missing.pth", "missing.pkl", "."])
def test_a_wrong_path_is_named(tmp_path, fresh, name):
    untouched(fresh, tmp_path / name, "MODEL.WEIGHTS")


def test_no_path_loads_nothing(fresh):
    before = snapshot(fresh)
    assert load(fresh, "") == {} and equal(snapshot(fresh), before)


def test_build_from_cfg_is_ready_to_use(saved, result):
    from tests.tiny_blendmask import tiny_cfg

    model = build_from_cfg(tiny_cfg("MODEL.WEIGHTS", str(saved)))
    assert not model.training and equal(detect(model), detect(result.model))


def unfilled(model, path):
    checkpointer = PruningCheckpointer(model)
    checkpointer.load(str(path))
    return checkpointer.unfilled


def test_what_a_file_leaves_unfilled_is_told(tmp_path):
    model = tiny_model()
    weights = model.state_dict()
    torch.save({"model": weights}, tmp_path / "x.pth")
    assert unfilled(model, tmp_path / "x.pth") == ()
    weights = {k: v for k, v in weights.items() if k not in ("top_layer.bias", "pixel_mean")}
    weights = {k: v for k, v in weights.items() if not k.startswith("basis_module.seg_head.")}
    weights = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    weights["top_layer.weight"] = weights["top_layer.weight"][:1]
    torch.save({"model": weights}, tmp_path / "x.pth")
    assert unfilled(model, tmp_path / "x.pth") == ("top_layer.weight", "top_layer.bias")


def test_a_backbones_file_leaves_the_rest_unfilled(tmp_path):
    model = tiny_model()
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(zoo(model)))
    names = unfilled(model, tmp_path / "x.pkl")
    assert "top_layer.weight" in names and not any(n.startswith("backbone.bottom_up.") for n in each(names))


def test_unfilled_is_of_the_last_load(saved, fresh, tmp_path):
    checkpointer = PruningCheckpointer(fresh)
    checkpointer.unfilled = ("before",)
    checkpointer.load(str(saved))
    assert checkpointer.unfilled == ()
    checkpointer.unfilled = ("before",)
    with pytest.raises(PruneError):
        checkpointer.load(str(tmp_path / "missing.pth"))
    assert checkpointer.unfilled == ()


def test_a_tied_weight_is_filled_by_its_other_name(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    weights = {k: v for k, v in model.state_dict().items() if k != "1.weight"}
    torch.save({"model": weights}, tmp_path / "x.pth")
    assert unfilled(model, tmp_path / "x.pth") == ()
