"""Texts of specs: a right spec or a PruneError."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2prune.core.cut.spec import PruneSpec
from tests.fuzz.good import good
from tests.fuzz.loads import same_spec
from tests.fuzz.mutations import spec_text
from tests.fuzz.watched import Watch, WrongError

REPRODUCIBLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
"""Examples are the same each time, and none is remembered."""


_CORRECTION = ["view", 4, 3, 8, [-1, 4, 2, 8], 0, [8, 4, 2, 8], [[1, 8]], 2, [-1, 4, 2, 2]]


@cache
def texts() -> tuple[str, ...]:
    """A spec of each version."""
    old = {**good().spec.to_dict(), "version": 1, "corrections": {"": [_CORRECTION], "out": []}}
    del old["calls"]
    return good().spec.to_json(), json.dumps(old)


def check_text(watch: Watch, name: str, text: str) -> bool:
    """Whether a text is read as a spec; raises WrongError."""
    spec, error = watch.call(name, lambda: PruneSpec.from_json(text))
    if error is not None:
        return False
    if not same_spec(spec, json.loads(text)):
        raise WrongError(f"the spec is another: {spec.to_json()[:300]}")
    if PruneSpec.from_json(spec.to_json()) != spec:
        raise WrongError("written and read again, it is another")
    return True


def mutated(watch: Watch, folder: Path, seeds: range) -> None:
    """Good specs with changes."""
    for seed in seeds:
        name = f"spec text {seed}"
        text = spec_text(seed, texts()[seed % 2])
        watch.judge(name, partial(check_text, watch, name, text))


_NUMBERS = st.one_of(st.integers(-2, 40), st.integers(), st.floats(), st.booleans(), st.none())
_WORDS = st.sampled_from(
    ["out", "in", "groups", "before", "after", "kept", "", "stem.0", "forward"]
) | st.text(max_size=8)
_ANY = st.recursive(
    _NUMBERS | _WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS, inner, max_size=4),
    max_leaves=12,
)


def _or_anything(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 15).flatmap(lambda n: _ANY if n == 15 else right)


@st.composite
def _axes(draw: st.DrawFn) -> dict[str, Any]:
    before = draw(st.integers(1, 12))
    kept = sorted(draw(st.sets(st.integers(0, before - 1), min_size=1, max_size=before)))
    return {"before": before, "after": len(kept), "kept": kept}


def _rows(row: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return _or_anything(st.dictionaries(_WORDS, _or_anything(row), max_size=3))


_SIZES = st.integers(-2, 9) | st.floats(allow_nan=False)
_CALLS = st.fixed_dictionaries({
    "functions": st.lists(_WORDS, min_size=1, max_size=2),
    "line": st.integers(0, 9),
    "ordinal": st.integers(0, 9),
    "text": _WORDS,
    "numbers": st.lists(st.tuples(st.integers(0, 3), _SIZES), min_size=1, max_size=2),
})  # fmt: skip
SPECS = st.fixed_dictionaries(
    {
        "version": _or_anything(st.sampled_from([1, 2])),
        "base": _or_anything(st.just("Net")),
        "layers": _rows(
            st.fixed_dictionaries(
                {"out": _or_anything(_axes())}, optional={"in": _axes(), "groups": st.integers(1, 4)}
            )
        ),
    },
    optional={
        "attributes": _rows(
            st.dictionaries(st.sampled_from(["wide", "training"]), st.tuples(st.integers(), st.integers()))
        ),
        "scales": _rows(
            st.lists(st.tuples(st.integers(0, 3), st.integers(4, 9), st.floats(0, 2)), max_size=2)
        ),
        "calls": _rows(st.lists(_CALLS, max_size=2)),
        "written_by": _rows(st.text(max_size=5)),
    },
)
"""Specs, right ones and nearly right ones, as plain data."""


def generated(watch: Watch, folder: Path, seeds: range) -> None:
    """As many examples as there are seeds."""
    count = 0

    @settings(REPRODUCIBLE, max_examples=len(seeds))
    @given(SPECS)
    def run(spec: Any) -> None:
        nonlocal count
        count += 1
        name = f"spec JSON {json.dumps(spec)}"
        watch.judge(name[:2000], partial(check_text, watch, name[:2000], json.dumps(spec)))

    run()
