"""What must hold of every prune, checked without the code under test's own proof."""

from __future__ import annotations

import copy

import torch
from torch import nn

from d2prune.adapters.base import flatten
from d2prune.core.layers.kinds import axis_width
from tests.each import each


def hold_back(model, spec):
    """Hooks that zero what each consumer reads from the dropped channels: the masked model."""
    for name, keep in spec.layers.items():
        if keep.inp is None:
            continue
        layer = model.get_submodule(name)
        mask = torch.zeros(axis_width(layer, "in"), dtype=torch.float64)
        mask[list(keep.inp)] = 1
        if not isinstance(layer, nn.Linear):
            mask = mask.view(-1, *[1] * (layer.weight.dim() - 2))
        layer.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask, *args[1:]))
    return model


def outputs(model, inputs):
    model = model.double().eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        return flatten(model(inputs))


def masked_equals_pruned(model, result, inputs):
    want = outputs(hold_back(copy.deepcopy(model), result.spec), inputs)
    got = outputs(copy.deepcopy(result.model), inputs)
    assert set(want) == set(got)
    for name, tensor in each(want.items()):
        scale = tensor.abs().max()
        assert scale > 0 and (tensor - got[name]).abs().max() <= 1e-9 * scale, name


def trains(model, inputs):
    model = copy.deepcopy(model).train()
    outs = flatten(model(inputs))
    sum(t.square().mean() for t in outs.values()).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def widths_agree(result):
    """The spec's widths, the layers' own attributes and the tensors say the same."""
    for name, keep in each(result.spec.layers.items()):
        target = result.model
        for part in name.split("."):
            target = getattr(target, part)
        if isinstance(target, nn.Parameter):
            assert len(keep.out) in target.shape
            continue
        for axis, kept in (("out", keep.out), ("in", keep.inp)):
            assert kept is None or axis_width(target, axis) == len(kept), (name, axis)
        for tensor in (*target.parameters(), *target.buffers()):
            assert tensor.dim() != 1 or tensor.numel() in (1, axis_width(target, "out")), name


def parameterised(model):
    """Names of the layers that must have a row: those with parameters of their own or statistics."""
    return [
        name
        for name, m in model.named_modules()
        if m._parameters and any(p is not None for p in m._parameters.values())
        or isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None
    ]  # fmt: skip


def covered_once(model, result):
    rows = [row.name for row in result.coverage]
    assert len(rows) == len(set(rows))
    for name in each(parameterised(model)):
        bare = [n for n, _ in model.get_submodule(name).named_parameters(name, recurse=False)]
        assert name in rows or set(bare) <= set(rows), name
    for row in each(result.coverage):
        assert (row.status == "pruned") == (row.after < row.before) == (not row.reason), row
