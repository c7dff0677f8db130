"""Mutated and generated files: each loads rightly, or is a PruneError that leaves the model as it was.

Each takes 2 s of the processor and 1 GB of memory at the most (see ``watched.py``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARES = {  # in hundredths
    "zip": 24, "legacy": 16, "contents": 13, "spec": 11, "safetensors": 6,
    "spec text": 8, "spec JSON": 8, "YAML text": 7, "YAML values": 7,
}  # fmt: skip
FEW, MANY = 500, 10_000
PACES = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


@cache
def tallies(cases: int) -> dict[str, dict[str, Any]]:
    """By kind, what became of its share of so many cases, all run in one process."""
    words = [f"{kind}:0:{cases * share // 100}" for kind, share in SHARES.items()]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.batch", *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {tally["kind"]: tally for tally in map(json.loads, done.stdout.splitlines())}


def test_all_cases_are_shared_out():
    assert sum(SHARES.values()) == 100


@pytest.mark.parametrize("cases", PACES)
@pytest.mark.parametrize("kind", SHARES)
def test_every_case_loads_rightly_or_is_refused(kind: str, cases: int):
    tally = tallies(cases)[kind]
    assert tally["wrong"] == []
    assert tally["loaded"] + tally["refused"] == cases * SHARES[kind] // 100
    assert min(tally["loaded"], tally["refused"]) > 0, "one of the two outcomes was never judged"
