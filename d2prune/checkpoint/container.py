"""Checks of a checkpoint's container, a zip file as a rule, before anything in it is unpickled."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from typing import IO

from d2prune.errors import PruneError

_ZIP = b"PK\x03\x04"  # torch, too, takes a file that begins so for a zip file
_END, _END_SIZE = b"PK\x05\x06", 22
_BLOCK = 1 << 20
_ENCRYPTED = 0x1  # the bit in a member's flags


def check_container(path: str | os.PathLike[str], tensors: bool = True) -> dict[str, int] | None:
    """Check that a file is what ``torch.save`` writes, as far as can be told without unpickling it.

    Args:
        path: the file.
        tensors: whether to compare the checksums of tensors, too. Those of the rest are always compared.

    Returns:
        The size in bytes of each member of a zip file, by its name inside the archive's folder; None for
        a file in torch's older format, which has no members.

    Raises:
        PruneError: for formats that torch no longer writes and that name files of their own.
        zipfile.BadZipFile: if a member is compressed, overlaps another, or has another checksum.
    """
    with open(path, "rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            _refuse_tar(path, file)
            return None
        _check_end(file)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_members(path, members, os.fstat(file.fileno()).st_size)
            _check_sums(archive, [m for m in members if tensors or "/data/" not in m.filename])
    folder = members[0].filename.partition("/")[0] + "/"
    return {m.filename.removeprefix(folder): m.file_size for m in members}


def _refuse_tar(path: str | os.PathLike[str], file: IO[bytes]) -> None:
    file.seek(0)
    try:
        tarfile.open(fileobj=file, mode="r:", format=tarfile.PAX_FORMAT).close()  # as torch tries it
    except tarfile.TarError:
        return
    raise PruneError(
        f"'{path}' is a tar file, which torch wrote before version 0.1.10; expected a zip file: load and "
        "save it again with torch.save"
    )


def _check_end(file: IO[bytes]) -> None:
    """Refuse bytes behind the end record: where it is searched for, readers may find different ones."""
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - _END_SIZE))
    end = file.read()
    if not end.startswith(_END) or end[-2:] != b"\0\0":
        raise zipfile.BadZipFile("the zip file's end record is not at its end")


def _check_members(path: str | os.PathLike[str], members: Sequence[zipfile.ZipInfo], size: int) -> None:
    names = {member.filename for member in members}
    if len(names) != len(members) or min((m.header_offset for m in members), default=1) != 0:
        raise zipfile.BadZipFile("the zip file's members are not those that it begins with")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
            raise zipfile.BadZipFile(
                f"member {member.filename!r} is compressed or encrypted; torch.save stores them as they are"
            )
        if member.file_size != member.compress_size:
            raise zipfile.BadZipFile(f"member {member.filename!r} has two sizes")
    total = sum(member.file_size for member in members)
    if total > size:
        raise zipfile.BadZipFile(f"its members have {total} bytes; the file has {size}")
    if any(name.endswith("/constants.pkl") for name in names):
        raise PruneError(f"'{path}' is a TorchScript program; expected a checkpoint of torch.save")


def _check_sums(archive: zipfile.ZipFile, members: Iterable[zipfile.ZipInfo]) -> None:
    """Read members, which compares their checksums, unless the file was written without any.

    ``torch.serialization.set_crc32_options(False)`` makes torch write zeros.
    """
    if not any(member.CRC for member in archive.infolist()):
        return
    for member in members:
        with archive.open(member) as stream:
            while stream.read(_BLOCK):
                pass
