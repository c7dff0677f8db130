"""Changes to a checkpoint's container: to the members of a zip file, and to pickles, opcode by opcode."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable
from random import Random

from tests.fuzz.damage import damaged

Members = list[tuple[str, bytes]]
_ZERO_SUMS = (b"PK\x03\x04", 14), (b"PK\x01\x02", 16)  # signatures of a member's two records, places of CRCs
_HOSTILE = (
    b"cos\nmkdir\n(X\x06\x00\x00\x00evildrtR", b"cbuiltins\neval\n", b"\x82\x01", b"\x97", b"\x98",
    b"\x96" + struct.pack("<Q", 6 << 30), b"\x8e" + struct.pack("<Q", 6 << 30),
    b"\x8d" + struct.pack("<Q", 2**62), b"r" + struct.pack("<I", 2**31), b"j" + struct.pack("<I", 2**31),
    b"\x8b" + struct.pack("<i", 2**31 - 1), b"(" * 2000, b"]" * 2000, b"\x85" * 2000,
    b"}" * 500 + b"u" * 500, b"2" * 1000, b"I" + b"9" * 5000 + b"\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"cnumpy\nndarray\n", b"N}b", b"Q",
    b"0", b".",
)  # fmt: skip


def unpacked(data: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(m.filename, archive.read(m)) for m in archive.infolist()]


def packed(members: Members, compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    """A zip file with right checksums."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # a name that is there twice
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
        archive.comment = comment
    return file.getvalue()


def _swapped(rng: Random, members: Members) -> Members:
    (i, one), (j, other) = rng.sample(list(enumerate(members)), 2)
    members[i], members[j] = (one[0], other[1]), (other[0], one[1])
    return members


def _dropped(rng: Random, members: Members) -> Members:
    members.pop(rng.randrange(len(members)))
    return members


def _renamed(rng: Random, members: Members) -> Members:
    i = rng.randrange(len(members))
    name = members[i][0]
    other = rng.choice(members)[0]
    names = (
        name + "0",
        name[:-1],
        other,
        "../" + name,
        "/" + name,
        name.upper(),
        name.replace("/", "\\"),
        "x",
    )
    members[i] = rng.choice(names), members[i][1]
    return members


def _doubled(rng: Random, members: Members) -> Members:
    name, content = rng.choice(members)
    at = rng.randrange(len(members) + 1)
    return [*members[:at], (name, damaged(rng, content) if rng.random() < 0.5 else content), *members[at:]]


def _rewritten(rng: Random, members: Members) -> Members:
    i = rng.randrange(len(members))
    members[i] = members[i][0], damaged(rng, members[i][1])
    return members


def _shuffled(rng: Random, members: Members) -> Members:
    rng.shuffle(members)
    return members


def _another_folder(rng: Random, members: Members) -> Members:
    return [
        (name.replace("archive/", rng.choice(("a/", "", "archive/archive/")), 1), c) for name, c in members
    ]


def _more(rng: Random, members: Members) -> Members:
    names = ("archive/constants.pkl", "archive/code/x.py", "archive/data/999", "archive/.data/x", "x/y", "x/")
    return [*members, (rng.choice(names), rng.randbytes(rng.choice((0, 1, 5000))))]


OF_MEMBERS: tuple[Callable[[Random, Members], Members], ...] = (
    _swapped, _dropped, _renamed, _doubled, _rewritten, _rewritten, _shuffled, _another_folder, _more,
)  # fmt: skip


def with_pickle(rng: Random, data: bytes) -> bytes:
    """A zip file whose pickle has other opcodes, and right checksums."""
    members = unpacked(data)
    return packed([(n, other_opcodes(rng, c) if n.endswith("data.pkl") else c) for n, c in members])


def stale_sums(rng: Random, data: bytes) -> bytes:
    """A zip file of which one member's bytes are others, and its checksum is the old one."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = rng.choice([m for m in archive.infolist() if m.file_size])
    names, extra = struct.unpack_from("<HH", data, member.header_offset + 26)
    start = member.header_offset + 30 + names + extra
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 3))):
        found[start + rng.randrange(member.file_size)] ^= rng.choice((1, 1, 0x80, rng.randrange(1, 256)))
    if found == data:
        found[start] ^= 1
    return bytes(found)


def no_sums(rng: Random, data: bytes) -> bytes:
    """A zip file as torch writes it without checksums, in which a member's bytes are others."""
    found = bytearray(packed(_rewritten(rng, unpacked(data))))
    for signature, place in _ZERO_SUMS:
        at = found.find(signature)
        while at >= 0:
            found[at + place : at + place + 4] = bytes(4)
            at = found.find(signature, at + 4)
    return bytes(found)


def pickles_in(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of the pickles that a file of torch's older format begins with."""
    file, found = io.BytesIO(data), []
    for _ in range(5):  # magic number, version, machine, the data, the storages' keys
        start = file.tell()
        for _ in pickletools.genops(file):
            pass
        found.append((start, file.tell()))
    return found


def legacy_opcodes(rng: Random, data: bytes) -> bytes:
    """A file of torch's older format, one of whose pickles has other opcodes."""
    start, end = rng.choice(pickles_in(data)[-2:] if rng.random() < 0.8 else pickles_in(data))
    return data[:start] + other_opcodes(rng, data[start:end]) + data[end:]


def other_opcodes(rng: Random, data: bytes) -> bytes:
    """A pickle in which opcodes went, came, changed places or arguments."""
    starts = [place for _, _, place in pickletools.genops(data)]
    opcodes = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        i, other = rng.randrange(len(opcodes)), rng.choice(opcodes)
        way = rng.randrange(7)
        if way == 0 and len(opcodes) > 1:
            del opcodes[i]
        elif way == 1:
            opcodes.insert(i, other)
        elif way == 2:
            opcodes[i] = other
        elif way == 3:
            opcodes.insert(i, rng.choice(_HOSTILE))
        elif way == 4:
            opcodes[i] = damaged(rng, opcodes[i])
        elif way == 5:
            opcodes[i] = rng.choice(_ALL) + opcodes[i][1:]
        else:
            opcodes[i] = opcodes[i][:1] + rng.randbytes(len(opcodes[i]) - 1)
    return b"".join(opcodes)


_ALL = [op.code.encode("latin1") for op in pickletools.opcodes if op.code.encode("latin1") != pickle.STOP]
