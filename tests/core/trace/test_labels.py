"""Labels: what is tied, what stays, and what a label_map comes to when elements moved."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2prune.core.trace.labels import LabelStore, along, compact, merge, settle, spread, support


@pytest.fixture
def store():
    return LabelStore(lambda: "here")


def label_map(store, count, dim=0, dims=1):
    return spread(store.new(count), dim, dims, torch.empty(0))


def tied(store):
    """The sets of labels that go together, without those alone."""
    roots = store.roots()
    sets = [set(np.flatnonzero(roots == root).tolist()) for root in np.unique(roots)]
    return [s for s in sets if len(s) > 1]


def kept(store):
    return {int(i): why for ids, why in store.kept for i in ids}


def test_labels_are_new_each_time_and_never_0(store):
    first, second = store.new(3), store.new(2)
    assert first.tolist() == [1, 2, 3] and second.tolist() == [4, 5]


def test_ties_are_closed_under_chains(store):
    rng = np.random.default_rng(0)
    store.new(60)
    pairs = torch.from_numpy(rng.integers(1, 61, size=(2, 45)))
    store.tie(*pairs)
    sets = [{i} for i in range(61)]
    for a, b in pairs.T.tolist():
        one, two = (next(s for s in sets if x in s) for x in (a, b))
        if one is not two:
            sets.remove(two)
            one |= two
    assert sorted(map(sorted, tied(store))) == sorted(sorted(s) for s in sets if len(s) > 1)


def test_a_book_without_ties_has_only_roots(store):
    store.new(4)
    assert store.roots().tolist() == [0, 1, 2, 3, 4]


def test_what_meets_no_label_stays(store):
    store.tie(label_map(store, 3), torch.tensor([0, 7, 0]))
    assert set(kept(store)) == {1, 3} and "meet channels that can't go, in here" in kept(store)[1]


def test_a_sheet_is_compact_where_it_does_not_vary():
    rows = torch.arange(1, 4)[:, None].expand(3, 5)
    assert compact(rows).tolist() == [[1], [2], [3]] and support(compact(rows)) == (0,)


def test_channels_seen_as_groups_lose_the_same_position_of_each(store):
    labels = label_map(store, 6).view(2, 3)
    assert settle(store, labels).tolist() == [[1, 2, 3]]
    assert tied(store) == [{1, 4}, {2, 5}, {3, 6}]


def test_labels_that_fall_together_stay(store):
    labels = label_map(store, 1)
    assert settle(store, labels.expand(4)) is None and set(kept(store)) == {1}


def test_operands_of_one_dimension_are_tied(store):
    one, two = label_map(store, 3, 1, 4), label_map(store, 3, 0, 1)
    shapes = torch.Size([2, 3, 5, 5]), torch.Size([3])
    (result,) = merge(store, [(shapes[0], (one,)), (torch.Size([3, 1, 1]), (two.view(3, 1, 1),))], shapes[0])
    assert along((result,), 1).tolist() == [1, 2, 3] and tied(store) == [{1, 4}, {2, 5}, {3, 6}]
    assert not store.kept


def test_an_operand_that_is_broadcast_leaves_labels_free(store):
    merge(store, [(torch.Size([4, 3]), (label_map(store, 3, 1, 2),)), (torch.Size([4, 1]), ())], (4, 3))
    assert not store.kept


def test_an_operand_that_does_not_shrink_keeps_labels(store):
    merge(store, [(torch.Size([4, 3]), (label_map(store, 3, 1, 2),)), (torch.Size([3]), ())], (4, 3))
    assert set(kept(store)) == {1, 2, 3} and "a tensor of shape (1, 3)" in kept(store)[1]


def test_rows_and_columns_are_two_sheets(store):
    rows, columns = label_map(store, 4, 0, 2), label_map(store, 3, 1, 2)
    both = merge(store, [(torch.Size([4, 1]), (rows,)), (torch.Size([1, 3]), (columns,))], (4, 3))
    assert {support(s) for s in both} == {(0,), (1,)} and not store.kept and not tied(store)
