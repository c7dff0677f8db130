"""What judges the cases sees what is wrong: each fault that a load could have is one here."""

from __future__ import annotations

import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from random import Random

import pytest
import torch

from d2prune.core.cut.spec import PruneSpec
from d2prune.errors import PruneError
from tests.fuzz import configs, specs, watched
from tests.fuzz.contents import LOADS, REFUSED
from tests.fuzz.loads import Judge, by_checkpointer, by_load, same_spec
from tests.fuzz.mutations import CHECKPOINTS, Case, checkpoint, untouched
from tests.fuzz.watched import Watch, WrongError


def judged(load, case: Case, tmp_path, pruned=False) -> bool:
    return Judge(Watch(), tmp_path / "x.pth", load, pruned)(case, "x")


@pytest.fixture
def case() -> Case:
    return untouched(Random(0))


@pytest.mark.parametrize(("load", "pruned"), [(by_load, False), (by_checkpointer, True)])
def test_the_original_loads(case, tmp_path, load, pruned):
    assert judged(load, case, tmp_path, pruned)
    with pytest.raises(WrongError, match="it loaded"):
        judged(load, replace(case, verdict=REFUSED), tmp_path, pruned)


def other_weight(path, model):
    by_load(path, model)
    model.head.bias.data[0] += 1e-6


def other_count(path, model):
    by_load(path, model)
    model.stem[1].num_batches_tracked += 1


def no_number(path, model):
    by_load(path, model)
    model.head.bias.data[0] = float("nan")


def other_code(path, model):
    by_load(path, model)
    model.wide = 12


def other_spec(path, model):
    by_load(path, model)
    model.prune_spec = replace(model.prune_spec, scales={})


def nothing(path, model):
    pass


def type_error(path, model):
    raise TypeError("x")


def long_winded(path, model):
    raise PruneError("one\ntwo")


def greedy(path, model):
    raise PruneError("no room") from MemoryError()


def refusing(path, model):
    raise PruneError("no")


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (other_weight, "head.bias is not as the file has it"),
        (other_count, "num_batches_tracked is not as the file has it"),
        (no_number, "head.bias is not finite"),
        (other_code, "it computes something else|shape"),
        (other_spec, "the model's spec is another"),
        (nothing, "the model's spec is another: None"),
        (type_error, "TypeError: x"),
        (long_winded, "an error of 7 characters"),
        (greedy, "it asked for too much memory"),
        (refusing, "it must load: no"),
    ],
)
def test_a_wrong_load_is_seen(case, tmp_path, load, said):
    with pytest.raises((WrongError, RuntimeError), match=said):
        judged(load, replace(case, verdict=LOADS), tmp_path)


def narrowed(model):
    model.head = torch.nn.Linear(2, 2)


def flipped(model):
    model.head.bias.data[0] = -model.head.bias.data[0]


def attributed(model):
    model.wide = 12


def reclassed(model):
    model.__class__ = type("Net", (type(model),), {})


@pytest.mark.parametrize("change", [narrowed, flipped, attributed, reclassed])
def test_a_model_that_a_refusal_changed_is_seen(case, tmp_path, change):
    def load(path, model):
        change(model)
        raise PruneError("no")

    with pytest.raises(WrongError, match="changed the model"):
        judged(load, case, tmp_path)


def test_a_slow_load_is_seen_and_ended(case, tmp_path, monkeypatch):
    def slow(path, model):
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        raise PruneError("no")

    def endless(path, model):
        while True:
            pass

    monkeypatch.setattr(watched, "SECONDS", 0.1)
    monkeypatch.setattr(watched, "_STUCK", 0.3)
    with pytest.raises(WrongError, match="it took 0.2 s"):
        judged(slow, case, tmp_path)
    with pytest.raises(WrongError, match="still at it after 0.3 s"):
        judged(endless, case, tmp_path)


def ask_for_too_much() -> None:
    """Both Python and torch are refused the memory, which a reader may turn into an error like any other."""
    watched.limit_memory(1 << 28)
    for asked in (lambda: bytearray(1 << 29), lambda: torch.empty(1 << 29, dtype=torch.uint8)):

        def load(asked=asked):
            try:
                asked()
            except (MemoryError, RuntimeError) as error:
                raise PruneError("not readable") from error

        with pytest.raises(WrongError, match="it asked for too much memory: not readable"):
            Watch().call("x", load)
    Watch().call("x", lambda: torch.empty(1 << 26, dtype=torch.uint8))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="address spaces are read from /proc")
def test_a_load_that_asks_for_too_much_memory_is_seen():
    process = get_context("fork").Process(target=ask_for_too_much)
    process.start()
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_seed_gives_one_case(kind):
    cases = [checkpoint(kind, seed) for seed in (*range(30), *range(30))]
    assert [c.how for c in cases[:30]] == [c.how for c in cases[30:]]
    assert len({c.content for c in cases}) > 20


def test_specs_are_compared_by_type_and_value():
    data = {"version": 2, "base": "x", "layers": {}, "written_by": {}}
    spec = PruneSpec.from_dict(data)
    assert same_spec(spec, data)
    assert not any(
        same_spec(spec, {**data, **more})
        for more in ({"version": True}, {"base": "y"}, {"layers": []}, {"x": 1})
    )


def test_a_spec_that_is_not_the_texts_is_seen(monkeypatch):
    text = '{"version": 2, "base": "x", "layers": {}}'
    assert specs.check_text(Watch(), "x", text)
    monkeypatch.setattr(PruneSpec, "from_json", lambda _: PruneSpec("y"))
    with pytest.raises(WrongError, match="the spec is another"):
        specs.check_text(Watch(), "x", text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"SEED": 3}, "SEED is -1; the file has 3"),
        ({"SEED": True}, "SEED is -1"),
        ({}, "SEED is 'x'; the file has -1"),
    ],
)
def test_a_config_that_is_not_the_files_is_seen(given, said):
    cfg = configs.get_cfg()
    configs.check_values(cfg, {})
    if not given:
        cfg.SEED = "x"
    with pytest.raises(WrongError, match=said):
        configs.check_values(cfg, given)
