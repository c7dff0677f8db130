"""Damage to rows of bytes that knows nothing of what they mean."""

from __future__ import annotations

from random import Random


def damaged(rng: Random, data: bytes) -> bytes:
    """``data`` with one to three damages; never as it was."""
    found = data
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = rng.choice(DAMAGES)(rng, bytearray(found))
    return found if found != data else flipped(rng, bytearray(data))


def flipped(rng: Random, data: bytearray) -> bytes:
    """One bit of them is another; of nothing comes a byte."""
    if not data:
        return b"\0"
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _overwritten(rng: Random, data: bytearray) -> bytes:
    start, stop = _run(rng, data)
    data[start:stop] = rng.choice(
        (bytes(stop - start), b"\xff" * (stop - start), rng.randbytes(stop - start))
    )
    return bytes(data)


def _truncated(rng: Random, data: bytearray) -> bytes:
    return bytes(data[: rng.randrange(len(data) + 1)])


def _without_head(rng: Random, data: bytearray) -> bytes:
    return bytes(data[rng.randrange(min(len(data), 100) + 1) :])


def _inserted(rng: Random, data: bytearray) -> bytes:
    at = rng.randrange(len(data) + 1)
    return bytes(data[:at] + rng.randbytes(rng.choice((1, 2, 4, 100, 5000))) + data[at:])


def _deleted(rng: Random, data: bytearray) -> bytes:
    start, stop = _run(rng, data)
    return bytes(data[:start] + data[stop:])


def _doubled(rng: Random, data: bytearray) -> bytes:
    start, stop = _run(rng, data)
    return bytes(data[:stop] + data[start:stop] * rng.choice((1, 1, 30)) + data[stop:])


def _moved(rng: Random, data: bytearray) -> bytes:
    start, stop = _run(rng, data)
    run, rest = data[start:stop], data[:start] + data[stop:]
    at = rng.randrange(len(rest) + 1)
    return bytes(rest[:at] + run + rest[at:])


def _number(rng: Random, data: bytearray) -> bytes:
    """A size or an offset of four or eight bytes is an absurd one."""
    size = rng.choice((2, 4, 8))
    at = rng.randrange(max(1, len(data) - size))
    bits = 8 * size
    number = rng.choice((0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1, rng.getrandbits(bits)))
    data[at : at + size] = number.to_bytes(size, "little")
    return bytes(data)


def _run(rng: Random, data: bytearray) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 64, 1000)))


DAMAGES = (
    lambda rng, data: flipped(rng, data),
    lambda rng, data: flipped(rng, data),
    _overwritten,
    _truncated,
    _without_head,
    _inserted,
    _deleted,
    _doubled,
    _moved,
    _number,
)
