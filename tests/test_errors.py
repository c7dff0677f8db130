"""The error's keys: named in the words of the configuration at hand, and nothing else of the text."""

import pickle

from d2prune.errors import PruneError

NAMES = {"MODEL.PRUNING.AMOUNT": "prune.amount", "AMOUNT": "prune.amount", "MODEL.PRUNE": "prune.enabled"}


def test_only_the_keys_that_the_error_names_are_spelled_anew():
    error = PruneError("MODEL.PRUNING.AMOUNT is 2; 0 < AMOUNT < 1", keys=("MODEL.PRUNING.AMOUNT", "AMOUNT"))
    assert str(error.spelled(NAMES)) == "prune.amount is 2; 0 < prune.amount < 1"
    assert error.spelled(NAMES).keys == ("prune.amount", "prune.amount")
    named = PruneError("'AMOUNT.pth': MODEL.PRUNE needs a file", keys=("MODEL.PRUNE",))
    assert str(named.spelled(NAMES)) == "'AMOUNT.pth': prune.enabled needs a file"


def test_what_an_error_does_not_carry_as_a_key_stays():
    assert str(PruneError("file FADE/MODEL.PRUNE").spelled(NAMES)) == "file FADE/MODEL.PRUNE"


def test_keys_survive_the_way_to_another_rank():
    error = pickle.loads(pickle.dumps(PruneError("x", keys=("MODEL.PRUNE",))))
    assert str(error) == "x" and error.keys == ("MODEL.PRUNE",)
