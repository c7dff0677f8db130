"""What a file's opcodes may do: build plain data and tensors. They change nothing and reserve nothing."""

from __future__ import annotations

import collections
import io
import pickle
import struct
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from d2prune.checkpoint.reader import read_checkpoint, read_pickle
from d2prune.checkpoint.unpickler import Unpickler
from d2prune.errors import PruneError
from tests.checkpoint.hostile import FilledArray, Forged, archive, attributes, name, program, text
from tests.checkpoint.loading import modest
from tests.each import each
from tests.fuzz.archives import pickles_in
from tests.fuzz.good import written

FUNCTION = name("torch._utils", "_rebuild_tensor_v2")


def refused(tmp_path, pickled, match="is not a readable checkpoint"):
    """Whatever the container, one line of PruneError names the file."""
    (tmp_path / "x.pkl").write_bytes(pickled)
    archive(tmp_path / "x.pth", pickled)
    for read, file in ((read_pickle, "x.pkl"), (read_checkpoint, "x.pth")):
        with pytest.raises(PruneError, match=match) as caught:
            read(tmp_path / file)
        assert file in str(caught.value) and "\n" not in str(caught.value)


def skipped(tmp_path, data):
    """The data is left out, and the rest is read."""
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {}, "it": data, "rest": 1}))
    assert read_pickle(tmp_path / "x.pkl") == {"model": {}, "rest": 1}


def marks():
    """What the attacks below would change in this process."""
    function = torch._utils._rebuild_tensor_v2
    return (
        function.__module__,
        function.__defaults__,
        Counter.__init__,
        OrderedDict.__len__,
        vars(torch).get("evil"),
    )


@pytest.mark.parametrize(
    "attack",
    [
        attributes(FUNCTION, "__module__", text("evil")),
        attributes(FUNCTION, "__defaults__", b")"),
        FUNCTION + b"}" + text("__module__") + text("evil") + b"sb",
        attributes(name("collections", "Counter"), "__init__", FUNCTION),
        attributes(name("collections", "OrderedDict"), "__len__", FUNCTION),
        attributes(name("torch", "float32"), "evil", b"N"),
        attributes(name("numpy", "dtype"), "evil", b"N"),
        attributes(b"]", "evil", b"N"),
    ],
)
def test_no_state_changes_a_class_or_function(tmp_path, attack):
    before = marks()
    refused(tmp_path, program(attack))
    assert marks() == before
    torch.save({"model": nn.Linear(1, 1).state_dict()}, io.BytesIO())


def test_an_ordered_dict_takes_no_class_from_a_file():
    made = name("collections", "OrderedDict") + b")R"
    pickled = program(attributes(made, "__class__", name("collections", "Counter")))
    assert type(Unpickler(io.BytesIO(pickled)).load()["0"]) is OrderedDict


def test_versions_of_modules_are_all_that_a_state_dict_takes(tmp_path):
    weights = nn.BatchNorm2d(2).state_dict()
    weights._metadata["evil"] = {"version": "text"}
    weights.other = torch.ones(1)
    torch.save(weights, tmp_path / "x.pth")
    read = read_checkpoint(tmp_path / "x.pth")["model"]
    assert type(read) is OrderedDict and vars(read) == {"_metadata": {"": {"version": 2}}}


def test_named_classes_and_functions_are_not_the_processes_own(tmp_path):
    found = Unpickler(io.BytesIO(program(name("collections", "Counter"), FUNCTION))).load()
    assert set(found) == {"0", "1"} and not any(
        value in (Counter, torch._utils._rebuild_tensor_v2) for value in each(found.values())
    )


@pytest.mark.parametrize(
    "state",
    [
        ("<", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0),
        ("<", None, None, None, -1, -1, 63),
        ("<", None, None, None, 1 << 40, -1, 0),
        ("<", (np.dtype("i1"), (8,)), None, None, -1, -1, 0),
        ("|x", None, None, None, -1, -1, 0),
        ("<", None, None, None, -1, -1, False),
        ("<",),
    ],
)
def test_a_dtype_is_what_its_name_says(tmp_path, state):
    refused(tmp_path, pickle.dumps({"a": Forged("f8", *state)}), "state of a numpy.dtype f8")


@pytest.mark.parametrize("kind", ["V8", "O8", "S4", "U4", "M8", "m8", "f16", "f8,f8", "(2,)f8", "f9", "", 5])
def test_arrays_of_anything_but_numbers_are_left_out(tmp_path, kind):
    plain = Forged(kind, "<", None, None, None, -1, -1, 0)
    skipped(tmp_path, FilledArray((1,), plain, bytes(8)))


@pytest.mark.parametrize(
    "data", [np.array(["a", "b"]), np.array([object, 1]), np.array([b"x"]), np.zeros(1, "f4,i4")]
)
def test_objects_text_and_records_are_no_weights(tmp_path, data):
    skipped(tmp_path, data)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": data[0]}))
    read_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((3,), bytes(16)),
        ((-2,), bytes(16)),
        ((1 << 62, 4), b""),
        ((2.0,), bytes(16)),
        (2, bytes(16)),
        ((2,), [1, 2]),
    ],
)
def test_an_array_has_the_bytes_of_its_shape(tmp_path, shape, data):
    refused(tmp_path, pickle.dumps({"a": FilledArray(shape, np.dtype("f8"), data)}), "numpy array")


@pytest.mark.parametrize("kind", ["?", "<i2", ">i4", "u1", "<f2", ">f4", "<f8", "<c8", "<c16"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_numeric_arrays_come_back(tmp_path, kind, protocol):
    whole = np.arange(6).astype(kind).reshape(2, 3)
    data = {
        "rows": whole,
        "columns": np.asfortranarray(whole),
        "none": whole[:0],
        "one": whole[1, 1],
        "twice": whole,
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data, protocol))
    read = read_pickle(tmp_path / "x.pkl")
    assert all(np.array_equal(read[key], value) for key, value in each(data.items()))
    assert read["rows"] is read["twice"] and read["rows"].flags.writeable and read["rows"].dtype.isnative
    assert torch.equal(torch.as_tensor(read["columns"]), torch.as_tensor(read["rows"]))


@pytest.mark.parametrize(
    "opcodes",
    [
        b"Nr" + struct.pack("<I", 1 << 25) + b"0N",  # LONG_BINPUT
        name("builtins", "bytearray") + b"\x8a\x05\0\0\0\0\1\x85R",
        b"\x96" + struct.pack("<Q", 1 << 32),  # BYTEARRAY8
        b"\x8e" + struct.pack("<Q", 1 << 32),  # BINBYTES8
        b"\x8d" + struct.pack("<Q", 1 << 32),  # BINUNICODE8
        b"\x95" + struct.pack("<Q", 1 << 32),  # FRAME
        name("builtins", "range") + b"\x8a\x05\0\0\0\0\1\x85R",
    ],
)
def test_no_opcode_reserves_memory(tmp_path, opcodes):
    (tmp_path / "x.pkl").write_bytes(program(opcodes))
    with modest():
        try:
            read_pickle(tmp_path / "x.pkl")
        except PruneError:
            pass


@pytest.mark.parametrize("encoding", ["../../os", "rot13", "utf-16", "zlib"])
def test_text_is_encoded_as_pickle_does_it_only(tmp_path, encoding):
    call = name("_codecs", "encode") + text("x") + text(encoding) + b"\x86R"
    refused(tmp_path, program(call), "_codecs.encode is known with latin1 only")
    assert Unpickler(io.BytesIO(pickle.dumps({"a": b"\xff"}, 2))).load() == {"a": b"\xff"}


@pytest.mark.parametrize(
    "opcodes",
    [
        b"}" + b")" + b"\x85" * 200_000 + b"Ns",  # a deep tuple as a key: C's hash of it recurses
        name("builtins", "set") + b"](" + b")" + b"\x85" * 200_000 + b"e\x85R",
        b"}]Ns",
        b"K\x01K\x02a",
        b"]K\x01K\x02s",
        b"K\x01)R",
        FUNCTION + b")R",
        name("torch", "float32") + b")R",
        name("torch._utils", "_rebuild_parameter") + b"K\x01\x88}\x87R",
        b"\x82\x01",
        b"\x97",
        b"h\x07",
        text("storage") + b"Q",
        b"0" * 5,
    ],
)
def test_other_opcodes_are_refused(tmp_path, opcodes):
    refused(tmp_path, program(opcodes))


def test_nothing_else_of_this_process_is_reachable(tmp_path):
    for module, attribute in [
        ("builtins", "eval"),
        ("torch", "save"),
        ("torch._utils", "os"),
        ("collections", "abc"),
    ]:
        unpickler = Unpickler(io.BytesIO(program(name(module, attribute) + b")R")))
        unpickler.skipped = set()
        assert unpickler.load()["0"].what == f"{module}.{attribute}" and unpickler.skipped
    assert collections.abc is not None


def test_states_of_trainers_come_back(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    data = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
    }
    data |= {"set": {1}, "frozen": frozenset([("a", 1)]), "complex": 1 + 2j, "device": torch.device("cpu")}
    for new in (True, False):
        torch.save(data, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        read = read_checkpoint(tmp_path / "x.pth")
        optimizer.load_state_dict(read["optimizer"])
        schedule.load_state_dict(read["scheduler"])
        assert (
            read["scheduler"]["milestones"] == Counter([2, 4])
            and type(read["scheduler"]["milestones"]) is Counter
        )
        assert {k: read[k] for k in ("set", "frozen", "complex", "device")} == {
            k: data[k] for k in ("set", "frozen", "complex", "device")
        }


def test_tensors_that_plain_pickle_wrote_are_left_out(tmp_path):
    skipped(tmp_path, torch.ones(2))
    skipped(tmp_path, nn.Parameter(torch.ones(2)))


def test_storages_that_an_older_file_does_not_list_are_refused(tmp_path):
    """Torch leaves them as the memory was."""
    weights = OrderedDict(a=torch.ones(3), b=torch.zeros(2))
    data = written({"model": weights}, as_zip=False)
    start, end = pickles_in(data)[-1]
    keys = pickle.loads(data[start:end])
    for listed in ([], keys[:1], keys[1:], [*keys[1:], "x"], [[keys[0]], keys[1]], tuple(keys), None, {}):
        (tmp_path / "x.pth").write_bytes(data[:start] + pickle.dumps(listed, 2) + data[end:])
        with pytest.raises(PruneError, match="x.pth' is not a readable checkpoint"):
            read_checkpoint(tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes(data)
    assert torch.equal(read_checkpoint(tmp_path / "x.pth")["model"]["b"], torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_tensors_of_eight_bits_are_left_out(tmp_path, dtype):
    torch.save({"model": {"w": torch.ones(2)}, "x": torch.ones(2).to(dtype)}, tmp_path / "x.pth")
    assert list(read_checkpoint(tmp_path / "x.pth")) == ["model"]
