"""The same architectures with plain torch-pruning, used as its own examples do."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from d2prune.adapters.base import flatten
from d2prune.benchmarks.entries import Entry
from d2prune.benchmarks.row import OK, attempt, run, train

RATIO = 0.3  # of the channels: about half of the MACs
PREDICTORS = (
    "cls",
    "box",
    "bbox",
    "score",
    "logits",
    "predictor",
    "deltas",
    "ctrness",
    "head",
    "fc",
    "classifier",
)


def try_torch_pruning(entry: Entry) -> str:
    """Say what comes of MagnitudePruner on a fresh model: "ok", or the step that failed and how."""
    torch.manual_seed(0)
    model = entry.build().eval()
    for what, step in (("prune", _prune), ("run", run), ("train", train)):
        found = attempt(partial(step, entry, model))
        if found != OK:
            return f"{what}: {found}"
    return OK


def _prune(entry: Entry, model: nn.Module) -> None:
    before = sum(p.numel() for p in model.parameters())
    inputs = entry.inputs() if entry.inputs else [{"image": torch.rand(3, 256, 320) * 255}]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        inputs,
        torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=RATIO,
        ignored_layers=_predictors(model),
        forward_fn=None if entry.inputs else _tensors_of,
    )
    pruner.step()
    assert sum(p.numel() for p in model.parameters()) < before, "nothing was pruned"


def _predictors(model: nn.Module) -> list[nn.Module]:
    """Layers that give a model's answers: by name, as one would pick them."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    named = [m for n, m in layers.items() if n.rpartition(".")[2].startswith(PREDICTORS)]
    return [*named, list(layers.values())[-1]]


def _tensors_of(model: nn.Module, batch: Any) -> list[Tensor]:
    """All float tensors of what a detector answers; Instances are unpacked."""
    leaves = tree_leaves(model(batch))
    fields = [leaf.get_fields() if hasattr(leaf, "get_fields") else {"": leaf} for leaf in leaves]
    values = [getattr(value, "tensor", value) for field in fields for value in field.values()]
    return list(flatten(values).values())
