"""Labels: what is tied, what stays, and what a sheet comes to when elements moved."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2prune.core.labels import Book, along, compact, merge, settle, spread, support


@pytest.fixture
def book():
    return Book(lambda: "here")


def sheet(book, count, dim=0, dims=1):
    return spread(book.new(count), dim, dims, torch.empty(0))


def tied(book):
    """The sets of labels that go together, without those alone."""
    roots = book.roots()
    sets = [set(np.flatnonzero(roots == root).tolist()) for root in np.unique(roots)]
    return [s for s in sets if len(s) > 1]


def kept(book):
    return {int(i): why for ids, why in book.kept for i in ids}


def test_labels_are_new_each_time_and_never_0(book):
    first, second = book.new(3), book.new(2)
    assert first.tolist() == [1, 2, 3] and second.tolist() == [4, 5]


def test_ties_are_closed_under_chains(book):
    rng = np.random.default_rng(0)
    book.new(60)
    pairs = torch.from_numpy(rng.integers(1, 61, size=(2, 45)))
    book.tie(*pairs)
    sets = [{i} for i in range(61)]
    for a, b in pairs.T.tolist():
        one, two = (next(s for s in sets if x in s) for x in (a, b))
        if one is not two:
            sets.remove(two)
            one |= two
    assert sorted(map(sorted, tied(book))) == sorted(sorted(s) for s in sets if len(s) > 1)


def test_a_book_without_ties_has_only_roots(book):
    book.new(4)
    assert book.roots().tolist() == [0, 1, 2, 3, 4]


def test_what_meets_no_label_stays(book):
    book.tie(sheet(book, 3), torch.tensor([0, 7, 0]))
    assert set(kept(book)) == {1, 3} and "meet channels that can't go, in here" in kept(book)[1]


def test_a_sheet_is_compact_where_it_does_not_vary():
    rows = torch.arange(1, 4)[:, None].expand(3, 5)
    assert compact(rows).tolist() == [[1], [2], [3]] and support(compact(rows)) == (0,)


def test_channels_seen_as_groups_lose_the_same_position_of_each(book):
    labels = sheet(book, 6).view(2, 3)
    assert settle(book, labels).tolist() == [[1, 2, 3]]
    assert tied(book) == [{1, 4}, {2, 5}, {3, 6}]


def test_labels_that_fall_together_stay(book):
    labels = sheet(book, 1)
    assert settle(book, labels.expand(4)) is None and set(kept(book)) == {1}


def test_operands_of_one_dimension_are_tied(book):
    one, two = sheet(book, 3, 1, 4), sheet(book, 3, 0, 1)
    shapes = torch.Size([2, 3, 5, 5]), torch.Size([3])
    (result,) = merge(book, [(shapes[0], (one,)), (torch.Size([3, 1, 1]), (two.view(3, 1, 1),))], shapes[0])
    assert along((result,), 1).tolist() == [1, 2, 3] and tied(book) == [{1, 4}, {2, 5}, {3, 6}]
    assert not book.kept


def test_an_operand_that_is_broadcast_leaves_labels_free(book):
    merge(book, [(torch.Size([4, 3]), (sheet(book, 3, 1, 2),)), (torch.Size([4, 1]), ())], (4, 3))
    assert not book.kept


def test_an_operand_that_does_not_shrink_keeps_labels(book):
    merge(book, [(torch.Size([4, 3]), (sheet(book, 3, 1, 2),)), (torch.Size([3]), ())], (4, 3))
    assert set(kept(book)) == {1, 2, 3} and "a tensor of shape (1, 3)" in kept(book)[1]


def test_rows_and_columns_are_two_sheets(book):
    rows, columns = sheet(book, 4, 0, 2), sheet(book, 3, 1, 2)
    both = merge(book, [(torch.Size([4, 1]), (rows,)), (torch.Size([1, 3]), (columns,))], (4, 3))
    assert {support(s) for s in both} == {(0,), (1,)} and not book.kept and not tied(book)
