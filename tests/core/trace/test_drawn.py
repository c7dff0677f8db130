"""Whatever is drawn of branches, sums, parts, groups and shared layers, the proof holds."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.errors import PruneError
from d2prune.pruning import find_groups, prune
from tests.core.nets import group_norm, images, lively
from tests.core.oracle import covered_once, masked_equals_pruned, widths_agree

WIDTHS = (8, 12, 16)
NORMS = (nn.BatchNorm2d, group_norm(4), lambda width: nn.Identity())


class Step(nn.Module):
    """One drawn step on the list of all tensors so far."""

    def __init__(self, kind, width, sources, layer=None):
        super().__init__()
        self.kind, self.width, self.sources, self.layer = kind, width, sources, layer

    def forward(self, known):
        one, two = (known[source] for source in self.sources)
        if self.kind == "sum":
            return one + two
        if self.kind == "gate":
            return one * two.mean((2, 3), keepdim=True).sigmoid()
        if self.kind == "cat":
            return torch.cat([one, two], 1)
        if self.kind == "halves":
            first, second = one.chunk(2, 1)
            return first - second
        if self.kind == "part":
            return one[:, : self.width]
        if self.kind == "shuffle":
            n, c, h, w = one.shape
            return one.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.layer(one)


class Drawn(nn.Module):
    def __init__(self, steps):
        super().__init__()
        self.stem, self.steps = nn.Conv2d(3, 16, 3, padding=1), nn.ModuleList(steps)
        self.head = nn.Conv2d(steps[-1].width, 4, 1)

    def forward(self, x):
        known = [self.stem(x).relu()]
        for step in self.steps:
            known.append(step(known))
        return self.head(known[-1])


def convolution(draw, inp):
    width = draw(st.sampled_from(WIDTHS))
    groups = draw(st.sampled_from((1, 1, 4, inp)))
    width = inp if groups == inp else width
    norm = draw(st.sampled_from(NORMS))(width)
    return width, nn.Sequential(nn.Conv2d(inp, width, 3, padding=1, groups=groups), norm, nn.ReLU())


@st.composite
def nets(draw):
    """A net of up to eight steps; every step has tensors of fitting widths to choose from."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    widths, steps, convolutions = [16], [], []
    for _ in range(draw(st.integers(2, 8))):
        source = draw(st.integers(0, len(widths) - 1))
        width = widths[source]
        alike = [i for i, other in enumerate(widths) if other == width]
        shared = [layer for inp, layer in convolutions if inp == width]
        other = draw(st.sampled_from(alike))
        kinds = ["conv", "conv", "sum", "gate", "halves", "part", "shuffle"]
        kinds += ["cat"] if width <= 16 else []
        kinds += ["again"] if shared else []
        kind, layer, new = draw(st.sampled_from(kinds)), None, width
        if kind == "conv":
            new, layer = convolution(draw, width)
            convolutions.append((width, layer))
        elif kind == "again":
            layer = draw(st.sampled_from(shared))
            new = layer[0].out_channels
        elif kind == "cat":
            new = 2 * width
        elif kind == "halves":
            new = width // 2
        elif kind == "part":
            new = max(4, width // 4 * 2 + 4 * (width > 8))
        if new % 4:
            continue
        steps.append(Step(kind, new, (source, other), layer))
        widths.append(new)
    if not steps:
        width, layer = convolution(draw, 16)
        steps.append(Step("conv", width, (0, 0), layer))
    return lively(Drawn(steps))


@given(nets(), st.sampled_from(("uniform", "global")))
@settings(
    max_examples=40, deadline=None, derandomize=True, database=None,
    phases=[Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_any_net_is_pruned_exactly_or_has_nothing_to_prune(model, allocation):
    groups = find_groups(model, TraceInput(model, images()))
    if all(group.fixed or group.units == 1 for group in groups):
        return
    try:
        result = prune(model, 0.3, "channels", allocation=allocation, example_inputs=images())
    except PruneError as error:  # two shuffles in a row can't tell groups from channels: found by trial
        assert "nothing was pruned" in str(error) and "without some of its channels" in str(error)
        return
    assert result.proof.error < 1e-9 and result.after.params < result.before.params
    masked_equals_pruned(model, result, images())
    widths_agree(result)
    covered_once(model, result)
