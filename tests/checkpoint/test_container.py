"""The zip file is checked before anything in it is unpickled: checksums, sizes, and how it stores."""

from __future__ import annotations

import os
import random
import tarfile
import zipfile

import pytest
import torch
from torch import nn

from d2prune.checkpoint.container import check_container
from d2prune.checkpoint.reader import read_checkpoint, read_spec
from d2prune.errors import PruneError
from tests.checkpoint.hostile import archive, text
from tests.checkpoint.loading import modest
from tests.each import each

VALUES = 1000


@pytest.fixture
def whole(tmp_path):
    torch.save({"model": {"w": torch.ones(VALUES)}, "iteration": 3}, tmp_path / "whole.pth")
    return tmp_path / "whole.pth"


def member(path, ending):
    """(start, size) of a member's bytes."""
    with zipfile.ZipFile(path) as file:
        info = next(m for m in file.infolist() if m.filename.endswith(ending))
        head = path.read_bytes()[info.header_offset : info.header_offset + 30]
        return info.header_offset + 30 + sum(map(int, head[26:30:2])) + 256 * (
            head[27] + head[29]
        ), info.file_size


def flipped(path, at, to):
    damaged = bytearray(path.read_bytes())
    damaged[at // 8] ^= 1 << at % 8
    to.write_bytes(damaged)
    return to


def storage(key, numel):
    """Opcodes of a tensor of floats over a storage of the file's choice."""
    place = b"K\x00K\x01\x85K\x01\x85\x89}t"  # offset, size, stride, requires_grad, hooks
    saved = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + saved
        + b"\x8a\x08"
        + numel.to_bytes(8, "little")
        + b"tQ"
        + place
        + b"R"
    )


def holding(*values):
    """A pickle of {"model": {"0": value, ...}}."""
    return (
        b"\x80\x02}"
        + text("model")
        + b"}("
        + b"".join(text(str(i)) + v for i, v in enumerate(values))
        + b"us."
    )


def test_one_flipped_bit_in_a_tensor_is_found(whole, tmp_path):
    start, size = member(whole, "/data/0")
    assert size == 4 * VALUES
    chance = random.Random(0)
    for _ in range(40):
        path = flipped(whole, chance.randrange(8 * start, 8 * (start + size)), tmp_path / "x.pth")
        with pytest.raises(PruneError, match=r"x.pth' is not a readable checkpoint .*CRC"):
            read_checkpoint(path)


def test_the_spec_is_read_without_the_tensors_but_never_from_a_damaged_pickle(whole, tmp_path):
    start, size = member(whole, "/data/0")
    assert read_spec(flipped(whole, 8 * start, tmp_path / "x.pth")) is None
    start, size = member(whole, "data.pkl")
    for byte in range(start, start + size):
        with pytest.raises(PruneError, match="x.pth' is not a readable checkpoint"):
            read_spec(flipped(whole, 8 * byte, tmp_path / "x.pth"))


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": {"w": torch.ones(3)}}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert not any(m.CRC for m in each(zipfile.ZipFile(tmp_path / "x.pth").infolist()))
    assert torch.equal(read_checkpoint(tmp_path / "x.pth")["model"]["w"], torch.ones(3))
    assert read_spec(tmp_path / "x.pth") is None


def test_sizes_of_members_are_told(whole):
    assert check_container(whole)["data/0"] == 4 * VALUES
    torch.save({"model": {}}, whole, _use_new_zipfile_serialization=False)
    assert check_container(whole) is None


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_tensor_is_not_inflated(tmp_path, kind):
    archive(tmp_path / "x.pth", holding(storage("0", 1 << 24)), kind, t0=bytes(1 << 26))
    assert os.path.getsize(tmp_path / "x.pth") < 1 << 20
    refusal = pytest.raises(PruneError, match="x.pth' .* is compressed or encrypted; torch.save stores")
    with modest(), refusal:
        read_checkpoint(tmp_path / "x.pth")


def test_an_archive_of_anothers_making_is_read_if_it_stores(tmp_path):
    archive(tmp_path / "x.pth", holding(storage("0", 2)), t0=torch.tensor([1.0, 2]).numpy().tobytes())
    assert read_checkpoint(tmp_path / "x.pth")["model"]["0"].tolist() == [1.0]


@pytest.mark.parametrize("numel", [3, 1 << 40, 1 << 62])
def test_a_storage_beyond_its_member_is_refused(tmp_path, numel):
    archive(tmp_path / "x.pth", holding(storage("0", numel)), t0=bytes(8))
    with pytest.raises(PruneError, match=rf"storage '0' has 8 bytes in the file, {4 * numel} are named"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_storage_that_is_not_there_is_refused(tmp_path):
    archive(tmp_path / "x.pth", holding(storage("../version", 0)), t0=bytes(8))
    with pytest.raises(PruneError, match="storage '../version' has -1 bytes"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_legacy_storage_beyond_the_file_is_refused(tmp_path):
    torch.save({"model": {"w": torch.ones(777)}}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "x.pth").read_bytes()
    assert whole.count(b"M\x09\x03") == 2  # 777, of the storage and of the tensor
    (tmp_path / "x.pth").write_bytes(whole.replace(b"M\x09\x03", b"J\x09\x03\x00\x40", 1))
    with pytest.raises(PruneError, match="bytes in the file, 4294970404 are named"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_tar_is_refused_without_extracting_it(tmp_path):
    with tarfile.open(tmp_path / "x.pth", "w") as tar:
        pipe = tarfile.TarInfo("storages")
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(pipe)
    for read in (read_checkpoint, read_spec):
        with pytest.raises(
            PruneError, match="x.pth' is a tar file, which torch wrote before .* expected a zip"
        ):
            read(tmp_path / "x.pth")


def test_a_program_is_no_checkpoint(tmp_path):
    torch.jit.script(nn.Linear(1, 1)).save(tmp_path / "x.pth")
    with pytest.raises(PruneError, match="x.pth' .*(TorchScript|compressed)"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("behind", [b"\0", b"more", bytes(100)])
def test_what_stands_before_or_behind_the_archive_is_refused(whole, tmp_path, behind):
    for content in (whole.read_bytes() + behind, b"PK\x03\x04" + behind + whole.read_bytes()):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(PruneError, match="x.pth' is not a readable checkpoint"):
            read_checkpoint(tmp_path / "x.pth")


def test_two_members_of_one_name_are_refused(whole, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "x.pth", "w") as out:
        for content in (b"}.", b"]."):
            out.writestr("x/data.pkl", content)
    with pytest.raises(PruneError, match="members are not those"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_name_from_the_file_does_not_fill_the_screen(whole, tmp_path):
    data = bytearray(whole.read_bytes())
    data[26:28] = (4000).to_bytes(2, "little")  # the first member's name is so long, its header says
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(PruneError, match="is not a readable checkpoint") as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert len(str(caught.value)) < 1000
