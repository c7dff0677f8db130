"""Cases of files by a seed: what a file holds, and what loading it may and must do."""

from __future__ import annotations

import copy
import json
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.fuzz.archives import (
    OF_MEMBERS,
    legacy_opcodes,
    no_sums,
    packed,
    stale_sums,
    unpacked,
    with_pickle,
)
from tests.fuzz.contents import EITHER, LOADS, OF_CONTENTS, REFUSED
from tests.fuzz.damage import damaged
from tests.fuzz.good import good, written
from tests.fuzz.trees import changed


@dataclass(frozen=True)
class Case:
    """A file, and what is right.

    Attributes:
        how: the name of what was done to it.
        content: its bytes.
        verdict: whether it must load, must be refused, or may do either.
        weights: what is loaded where it loads; None: what torch's own reader finds in the file.
        spec: likewise.
        suffix: of the file's name.
    """

    how: str
    content: bytes
    verdict: str = EITHER
    weights: dict[str, Any] | None = None
    spec: Any = None
    suffix: str = ".pth"


def _as_it_was(how: str, content: bytes, verdict: str = EITHER) -> Case:
    """Of a file whose checksums tell that it is damaged, nothing other than the original may be loaded."""
    return Case(how, content, verdict, good().data["model"], good().data["prune_spec"])


def of_zip(rng: Random) -> Case:
    """A zip file that is damaged, or of which members or the pickle are changed with right checksums."""
    data = good().saved(as_zip=True)
    way = rng.choice(
        ("damage", "damage", "stale", "members", "members", "pickle", "pickle", "no sums", "as a whole")
    )
    if way == "damage":
        return _as_it_was("zip: damaged", damaged(rng, data))
    if way == "stale":
        return _as_it_was("zip: stale checksum", stale_sums(rng, data), REFUSED)
    if way == "as a whole":
        return _as_it_was("zip: another container", _other_container(rng, data), REFUSED)
    if way == "members":
        change = rng.choice(OF_MEMBERS)
        return Case(f"zip: member {change.__name__.strip('_')}", packed(change(rng, unpacked(data))))
    return Case(f"zip: {way}", (with_pickle if way == "pickle" else no_sums)(rng, data))


def _other_container(rng: Random, data: bytes) -> bytes:
    ways = (
        lambda: packed(
            unpacked(data), rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        ),
        lambda: data + rng.randbytes(rng.choice((1, 100))),
        lambda: data + data,
        lambda: packed(unpacked(data), comment=b"x"),
        lambda: rng.randbytes(rng.choice((1, 100))) + data,
    )
    return rng.choice(ways)()


def of_legacy(rng: Random) -> Case:
    """A file of torch's older format. It has no checksums: other bytes of a tensor are other weights.

    So all that can be held of those that load is that they load as torch reads them, under right names, of
    right shapes and dtypes, and finite.
    """
    data = good().saved(as_zip=False)
    if rng.random() < 0.5:
        return Case("legacy: damaged", damaged(rng, data))
    return Case("legacy: opcodes", legacy_opcodes(rng, data))


def of_contents(rng: Random) -> Case:
    """A whole file, in either format, with other tensors, names or entries."""
    data = {**good().data, "model": OrderedDict(good().data["model"])}
    data["model"]._metadata = copy.deepcopy(good().data["model"]._metadata)
    change = rng.choice(OF_CONTENTS)
    verdict = change(rng, data)
    content = written(data, as_zip=rng.random() < 0.7)
    return Case(f"contents: {change.__name__}", content, verdict, data.get("model"), data["prune_spec"])


def of_spec(rng: Random) -> Case:
    """A whole file whose ``prune_spec`` is another tree."""
    spec = changed(rng, good().data["prune_spec"])
    content = written({**good().data, "prune_spec": spec}, as_zip=rng.random() < 0.7)
    return Case("spec: changed", content, EITHER, good().data["model"], spec)


def of_safetensors(rng: Random) -> Case:
    """A safetensors file, damaged, or with another header or spec. It has no checksums either."""
    data = good().safetensors()
    way = rng.choice(("damaged", "header", "spec"))
    if way == "damaged":
        return Case("safetensors: damaged", damaged(rng, data), suffix=".safetensors")
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    if way == "spec":
        spec = json.loads(header["__metadata__"]["prune_spec"])
        header["__metadata__"]["prune_spec"] = _json(changed(rng, spec))
    else:
        header = changed(rng, header)
    text = _json(header).encode()
    content = len(text).to_bytes(8, "little") + text + rest
    return Case(f"safetensors: {way}", content, suffix=".safetensors")


def untouched(rng: Random) -> Case:
    """The original, which must load: after any number of refusals, too."""
    return _as_it_was("untouched", good().saved(as_zip=rng.random() < 0.5), LOADS)


CHECKPOINTS: dict[str, Callable[[Random], Case]] = {
    "zip": of_zip,
    "legacy": of_legacy,
    "contents": of_contents,
    "spec": of_spec,
    "safetensors": of_safetensors,
}


def checkpoint(kind: str, seed: int) -> Case:
    """The case of this kind and seed: the same on every machine with this torch and Python."""
    rng = Random(f"{kind} {seed}")
    return untouched(rng) if rng.random() < 0.03 else CHECKPOINTS[kind](rng)


def spec_text(seed: int, text: str) -> str:
    """A spec's JSON in which bytes or values are others."""
    rng = Random(f"spec text {seed}")
    if rng.random() < 0.4:
        return damaged(rng, text.encode()).decode("utf-8", "replace")
    if rng.random() < 0.1:
        return rng.choice(
            ("[" * 100_000, '{"a":' * 100_000, "9" * 5000, "", "null", '"x"', f"[{text}]", text + text)
        )
    return _json(changed(rng, json.loads(text)))


def _json(value: Any) -> str:
    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)  # so that it can be written
    try:
        return json.dumps(value)
    finally:
        sys.set_int_max_str_digits(digits)
