"""What a model has to prune: its groups of channels, and its costs."""

from __future__ import annotations

import copy
import logging

from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.copies import in_float32, on_meta
from d2prune.core.plan.costs import CostModel, measure
from d2prune.core.trace.tracer import trace_groups
from d2prune.core.types import Group
from d2prune.errors import MISFITS, told

logger = logging.getLogger(__name__)


def find_groups(model: nn.Module, trace_input: TraceInput) -> tuple[Group, ...]:
    """Return the groups of channels that are cut together, traced in float32 on a copy."""
    return trace_groups(in_float32(model), trace_input.outputs)


def measure_model(model: nn.Module, trace_input: TraceInput) -> CostModel:
    """Measure the costs of one image, on the meta device (which takes no time) if the model runs there."""
    try:
        return measure(on_meta(model).eval(), trace_input.inference)
    except MISFITS as error:  # .numpy() and .item() have no values there
        logger.info("counting on the model's own device: it does not run on meta (%s)", told(error))
        return measure(copy.deepcopy(model).eval(), trace_input.inference)
