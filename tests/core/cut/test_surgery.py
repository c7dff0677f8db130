"""What goes, marked on the model that still has it."""

from __future__ import annotations

import copy

import pytest
import torch

from d2prune.core.cut.surgery import removed_by, resize
from d2prune.pruning import prune
from tests.core import nets


@pytest.mark.parametrize("name", nets.CONVOLUTIONAL)
def test_marks_are_what_resizing_takes_out(name):
    model = nets.lively(nets.CONVOLUTIONAL[name]())
    step = prune(model, 0.3, "channels", example_inputs=nets.images(), verify=False).step
    marks, small = removed_by(model, step), dict(resize(copy.deepcopy(model), step).named_parameters())
    assert marks
    for key, parameter in model.named_parameters():
        if key not in marks:
            assert torch.equal(small[key], parameter)
            continue
        mark = marks[key]
        assert mark.shape == parameter.shape and mark.dtype == parameter.dtype
        assert torch.equal(small[key].flatten(), parameter[mark == 0])
        assert set(mark.unique().tolist()) == {0.0, 1.0}
