"""A training that goes on after an interruption sees what it would have seen."""

from __future__ import annotations

import random
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler

from d2prune.engine.data_order import OrderedLoader
from tests.each import each

COUNT, BATCH, MOST = 13, 3, 12


def images():
    """Upright and lying images in no order: batches of one kind wait for each other."""
    return [{"name": i, "width": 10 + i % 5, "height": 12} for i in range(COUNT)]


def augmented(image):
    return {**image, "drawn": (random.random(), float(np.random.rand()), float(torch.rand(())))}


def loader(seed=7, *, grouped, workers, sampler=TrainingSampler):
    given = sampler(COUNT) if sampler is TrainingSampler else sampler(torch.linspace(1, 3, COUNT))
    return OrderedLoader(
        build_detection_train_loader(
            images(), mapper=augmented, sampler=given, total_batch_size=BATCH,
            aspect_ratio_grouping=grouped, num_workers=workers,
        ),
        seed,
    )  # fmt: skip


def steps(ordered, count):
    """What ``count`` steps see, and what they draw."""
    return [(batch, float(torch.rand(()))) for batch in islice(ordered, count)]


@pytest.mark.parametrize("sampler", [TrainingSampler, RepeatFactorTrainingSampler])
@pytest.mark.parametrize(
    ("grouped", "workers", "seen"),
    [(True, 0, 1), (True, 0, 5), (True, 2, 4), (True, 3, 5), (False, 0, 5), (False, 2, 3), (False, 3, 4)],
)
def test_the_rest_is_as_if_nothing_had_happened(grouped, workers, seen, sampler):
    whole = loader(grouped=grouped, workers=workers, sampler=sampler)
    state, expected = whole.state_dict(), steps(whole, MOST)
    assert len({image["name"] for batch, _ in expected for image in batch}) > COUNT // 2
    np.random.seed(99)  # the new run's sampler draws another seed
    rest = loader(seed=-1, grouped=grouped, workers=workers, sampler=sampler)
    rest.load_state_dict(state)
    rest.start_at(seen)
    assert steps(rest, MOST - seen) == expected[seen:]


def test_augmentations_do_not_depend_on_the_number_of_workers():
    drawn = []
    for workers in (0, 2):
        np.random.seed(0)
        batches = [batch for batch, _ in steps(loader(grouped=False, workers=workers), 4)]
        drawn.append(batches)
    assert drawn[0] == drawn[1]


def test_another_seed_is_another_order():
    one, other = (steps(loader(seed, grouped=True, workers=0), 3) for seed in (1, 2))
    assert all(a[1] != b[1] for a, b in each(list(zip(one, other, strict=True))))


def test_a_checkpoint_of_other_workers_or_without_the_order_is_said(heard):
    state = loader(grouped=True, workers=2).state_dict()
    ordered = loader(grouped=True, workers=0)
    ordered.load_state_dict(state)
    ordered.start_at(0)
    assert not heard.text
    ordered.start_at(3)
    assert "the order of the images begins anew" in heard.text
    assert steps(ordered, 2)
    heard.text = ""
    loader(grouped=True, workers=0).start_at(3)
    assert "the order of the images begins anew" in heard.text


def test_batches_of_any_loader_pass():
    batches = [[{"name": 1}], [{"name": 2}]]
    ordered = OrderedLoader(batches, 3)
    assert [batch for batch, _ in steps(ordered, 5)] == batches
    again = OrderedLoader(batches, -1)
    again.load_state_dict(ordered.state_dict())
    again.start_at(1)
    assert steps(again, 1)[0][1] == steps_at(ordered, 1), "what is drawn is as in the first run"


def steps_at(ordered, iteration):
    ordered.start_at(iteration)
    return steps(ordered, 1)[0][1]
