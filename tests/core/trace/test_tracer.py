"""Groups: however channels hang together, they are pruned exactly or left with a reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.errors import PruneError
from d2prune.pruning import find_groups, prune
from tests.core import nets
from tests.core.nets import CONVOLUTIONAL, Chain, block, group_norm, images, lively
from tests.core.oracle import covered_once, masked_equals_pruned, trains, widths_agree
from tests.each import each

ALL = [(a, t) for a in ("uniform", "global") for t in ("channels", "params", "macs")]


def groups_of(model, inputs=None):
    inputs = images() if inputs is None else inputs
    return {g.name: g for g in find_groups(model, TraceInput(model, inputs))}


def sites(group):
    return {member.site for member in group.members}


def rows(result):
    return {row.name: row for row in result.coverage}


@pytest.mark.parametrize("allocation, target", ALL)
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_net_is_pruned_exactly(name, allocation, target):
    model = lively(CONVOLUTIONAL[name]())
    result = prune(model, 0.4, target, allocation=allocation, example_inputs=images())
    assert result.proof.exact and result.proof.reason == ""
    assert result.after.macs < result.before.macs and result.after.params < result.before.params
    masked_equals_pruned(model, result, images())
    trains(result.model, images())
    widths_agree(result)
    covered_once(model, result)


def test_a_chain_has_one_group_per_layer():
    found = groups_of(Chain())
    assert list(found) == ["0.0", "1.0", "2.0", "3"]
    assert sites(found["0.0"]) == {("0.0", "out"), ("0.1", "out"), ("1.0", "in")}
    assert all((g.units, g.step) == (g.width, 1) for g in each(found.values()))
    assert found["3"].fixed == "is the model's output 'output'" and not found["2.0"].fixed


def test_a_sum_ties_its_terms():
    found = groups_of(nets.Residual())
    assert set(found["stem.0"].producers) == {"stem.0", "one.1"}
    assert set(found["two.1"].producers) == {"two.1", "shortcut"}


def test_a_concatenation_keeps_its_parts_apart():
    growth, found = 12, groups_of(nets.Dense(12))
    columns = {m.site: m.indices for m in found["layers.1.2"].members}[("head.1", "in")]
    assert columns.ravel().tolist() == list(range(2 * growth, 3 * growth))


def test_flattened_channels_are_blocks_of_features():
    columns = {m.site: m.indices for m in groups_of(nets.Flat(16))["body.1.0"].members}["fc1", "in"]
    assert columns.shape == (16, 9) and columns[3].tolist() == list(range(27, 36))


def test_a_depthwise_convolution_follows_its_input():
    group = groups_of(nets.Mobile())["expand.0"]
    assert {("depthwise.0", "out"), ("project.0", "in")} <= sites(group)


def test_grouped_convolutions_lose_the_same_channels_of_every_group():
    model = lively(nets.Grouped(16, groups=4))
    spec = prune(model, 0.4, example_inputs=images()).spec
    for axis, per_group in (("inp", 8), ("out", 8)):
        kept = getattr(spec.layers["grouped.0"], axis)
        parts = [{i % per_group for i in kept if i // per_group == g} for g in range(4)]
        assert parts[0] and parts.count(parts[0]) == 4


def test_groupnorm_loses_whole_groups_and_lowers_num_groups():
    model = lively(Chain(24, norm=group_norm(8)))
    result = prune(model, 0.4, example_inputs=images())
    for name in ("0.1", "1.1", "2.1"):
        old, new = model.get_submodule(name), result.model.get_submodule(name)
        size = old.num_channels // old.num_groups
        assert new.num_channels == new.num_groups * size
        kept = result.spec.layers[name].out
        assert all(kept.count(i // size * size + j) == 1 for i in each(kept) for j in range(size))


def test_one_normalisation_group_is_all_or_nothing():
    result = prune(
        nn.Sequential(block(3, 12, norm=group_norm(1)), block(12, 16), nn.Conv2d(16, 2, 1)), 0.2,
        example_inputs=images(),
    )  # fmt: skip
    assert rows(result)["0.0"].reason == "its channels can only be removed all together"


def test_halves_added_together_are_tied_within_one_layer():
    group = groups_of(nets.Split(16))["stem.0"]
    outs = {m.site: m.indices for m in group.members}["stem.0", "out"]
    assert group.units == 16 and outs.tolist() == [[i, i + 16] for i in range(16)]


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_transposed_convolutions_of_any_groups(groups):
    model = lively(
        nn.Sequential(block(3, 16), nn.ConvTranspose2d(16, 16, 2, 2, groups=groups), nn.Conv2d(16, 3, 1))
    )
    result = prune(model, 0.5, allocation="uniform", example_inputs=images())
    assert result.proof.exact and all(r.status == "pruned" for r in each(result.coverage[:3]))
    masked_equals_pruned(model, result, images())


def test_a_shared_layer_is_one_group_with_all_its_norms():
    group = groups_of(nets.Shared(levels=3))["convs.0"]
    assert {(f"norms.0.{i}", "out") for i in range(3)} | {("convs.1", "in")} <= sites(group)


def test_every_output_is_kept():
    found = groups_of(nets.TwoOutputs())
    assert found["logits"].fixed == "is the model's output 'output.logits'"
    assert found["boxes"].fixed and not found["hidden"].fixed


def test_bare_parameters_have_rows_of_their_own():
    result = prune(lively(nets.LayerScale()), 0.4, allocation="uniform", example_inputs=images())
    found = rows(result)
    assert found["gamma"].after == found["conv"].after == result.model.gamma.shape[0]
    assert found["offset"].status == "pruned" and "" not in found


MIXING = {
    nn.LayerNorm: "normalised together (LayerNorm), in norm",
    nn.RMSNorm: "mixed by aten::mean, in norm",
}


@pytest.mark.parametrize("norm", MIXING)
def test_what_a_norm_mixes_is_skipped_with_a_reason(norm):
    model, inputs = lively(nets.Normed(norm=norm)), torch.rand(4, 10)
    result = prune(model, 0.25, example_inputs=inputs)
    assert result.proof.exact and rows(result)["up"].status == "pruned"
    assert MIXING[norm] in rows(result)["inp"].reason and "ALLOW_INEXACT" in rows(result)["inp"].reason


@pytest.mark.parametrize("norm", MIXING)
def test_what_a_norm_mixes_is_pruned_where_inexact_is_allowed(norm):
    model, inputs = lively(nets.Normed(norm=norm)), torch.rand(4, 10)
    result = prune(model, 0.4, allocation="uniform", allow_inexact=True, example_inputs=inputs)
    assert rows(result)["norm"].status == rows(result)["inp"].status == "pruned"
    assert not result.proof.exact and MIXING[norm] in result.proof.reason
    trains(result.model, inputs)
    widths_agree(result)


def test_layers_that_cannot_be_cut_are_reported():
    model, inputs = lively(nets.Recurrent()), torch.rand(2, 5, 6)
    result = prune(model, 0.15, example_inputs=inputs)
    assert result.proof.exact
    assert "not a layer d2prune can cut" in rows(result)["lstm"].reason
    assert "lstm is a" in rows(result)["inp"].reason
    masked_equals_pruned(model, result, inputs)
    covered_once(model, result)


def test_the_channels_of_an_embedding_are_pruned():
    model, inputs = lively(nets.Words()), torch.arange(14).view(2, 7)
    result = prune(model, 0.4, target="params", allocation="uniform", example_inputs=inputs)
    width = rows(result)["embedding"].after
    assert result.proof.exact and width < 16 and result.model.embedding.embedding_dim == width
    masked_equals_pruned(model, result, inputs)
    trains(result.model, inputs)


def test_weights_that_are_computed_are_left_whole():
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 1))
    model = nn.Sequential(block(3, 16), normed, block(16, 16), block(16, 16), nn.Conv2d(16, 3, 1))
    result = prune(lively(model), 0.2, example_inputs=images())
    assert result.proof.exact and "weight is computed" in rows(result)["0.0"].reason


def test_weights_that_are_shared_are_left_whole():
    model = nn.Sequential(*(nn.Conv2d(i, 16, 1) for i in (3, 16, 16, 16)), nn.Conv2d(16, 3, 1))
    model[2].weight = model[1].weight
    result = prune(lively(model), 0.1, example_inputs=images())
    assert result.proof.exact and result.model[2].weight is result.model[1].weight
    assert "shares its weights" in rows(result)["1"].reason


def test_a_broadcast_gate_leaves_what_it_gates_free():
    result = prune(lively(nets.OneGate()), 0.4, allocation="uniform", example_inputs=images())
    assert result.proof.exact and rows(result)["conv.0"].status == "pruned"


class Through(nn.Module):
    """A function of our choice in the middle of a net."""

    def __init__(self, function, width=16):
        super().__init__()
        self.stem, self.conv = block(3, width), nn.Conv2d(width, width, 1)
        self.last, self.head = nn.Conv2d(width, width, 1), nn.Conv2d(width, 4, 1)
        self.function = function

    def forward(self, x):
        return self.head(self.last(self.function(self.conv(self.stem(x)))).relu())


def attend(x):
    n, c, h, w = x.shape
    tokens = x.flatten(2)
    return (tokens @ (tokens.transpose(1, 2) @ tokens).softmax(-1)).view(n, c, h, w)


def shuffle(x):
    n, c, h, w = x.shape
    return x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)


FREE = {
    "flip": lambda x: x.flip(1),
    "shuffle": shuffle,
    "halves": lambda x: torch.cat([part * i for i, part in enumerate(x.chunk(2, 1), 1)], 1),
    "pixels": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "einsum": lambda x: torch.einsum("nchw,ncvw->nchv", x, x.sigmoid()) / 9,
    "repeat": lambda x: x.repeat(1, 2, 1, 1).unflatten(1, (2, -1)).sum(1),
    "zeros": lambda x: x + torch.zeros_like(x),
    "every other": lambda x: torch.stack([-x[:, 1::2], x[:, ::2]], 2).flatten(1, 2),
}
LEFT = {
    "number in a function of its own": (lambda x: x.view(-1, 16, *x.shape[2:]) + 1, "can't be changed"),
    "softmax": (lambda x: x.softmax(1), "are mixed by aten::_softmax, in Through"),
    "normalize": (lambda x: F.normalize(x, dim=1), "are mixed by aten::linalg_vector_norm"),
    "every third": (lambda x: x + x[:, ::3].mean(1, keepdim=True), "are taken apart by position"),
    "sum": (lambda x: x + x.sum(1, keepdim=True), "are mixed by aten::sum"),
    "constant": (lambda x: x * torch.linspace(0, 1, 16).to(x).view(1, -1, 1, 1), "does not shrink with them"),
    "width as a factor": (lambda x: x * (x.shape[1] / 16), "the model's code mixes up others"),
    "width as a size": (lambda x: x + torch.ones(x.shape[1] // 16), "the model does not run"),
    "unknown": (lambda x: torch.fft.fft(x).real, "go through aten::"),
    "median": (lambda x: x - x.sort(1).values[:, 8:9], "are sorted by aten::sort"),
    "places": (
        lambda x: F.grid_sample(x, x[:, :, :1, :2], align_corners=False),
        "say where aten::grid",
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_code_that_moves_channels_about_is_followed(name):
    model = lively(Through(FREE[name]))
    result = prune(model, 0.4, "params", allocation="uniform", example_inputs=images())
    assert result.proof.exact and rows(result)["conv"].status == "pruned"
    masked_equals_pruned(model, result, images())


def test_channels_multiplied_with_each_other_are_silenced_where_they_are_made():
    model = lively(Through(attend))
    result = prune(model, 0.4, "params", allocation="uniform", example_inputs=images())
    assert result.proof.exact and rows(result)["conv"].status == "pruned"
    contracted = {name for name, group in groups_of(model).items() if group.contracted}
    assert contracted == {"conv"}
    mask = torch.zeros(16, 1, 1, dtype=torch.float64)
    mask[list(result.spec.layers["conv"].out)] = 1
    model.conv.register_forward_hook(lambda *args: args[-1] * mask)
    masked_equals_pruned(model, result, images())


@pytest.mark.parametrize("name", LEFT)
def test_what_mixes_channels_is_left_whole_with_the_reason(name):
    function, why = LEFT[name]
    model = lively(Through(function))
    result = prune(model, 0.25, "params", allocation="uniform", example_inputs=images())
    assert result.proof.exact and why in rows(result)["conv"].reason
    assert rows(result)["stem.0"].status == "pruned"
    masked_equals_pruned(model, result, images())


def test_an_output_of_constants_is_an_error():
    def forward(model, x):
        return {"real": model(x), "constant": x * 2}

    with pytest.raises(PruneError, match="output 'output.constant' does not depend on any parameter"):
        prune(Chain(), 0.4, example_inputs=images(), forward_fn=forward)
