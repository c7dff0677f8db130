"""One architecture of the zoo: pruned by half, proved, run, trained, saved and loaded."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.adapters.base import flatten
from d2prune.benchmarks.entries import Entry
from d2prune.checkpoint.api import load, save
from d2prune.core.plan.limits import limits_of
from d2prune.core.types import Request
from d2prune.errors import PruneError
from d2prune.pruning import find_groups, measure_model, prune
from d2prune.recipes.modules import smallest

OK = "ok"
SIZE = (256, 320)
KEYPOINTS = 17
HOW: dict[str, Any] = {"criterion": "magnitude", "allocation": "global"}
"""What may be removed is asked here, and how exactly, not how well: random weights give no data."""


@dataclass
class Row:
    """What came of one entry; texts are "ok", or what went wrong.

    Attributes:
        name: of the entry.
        macs, params: fractions removed.
        error, control: the proof's figures.
        exact: its verdict.
        runs, trains, reloads: whether the pruned model does.
        seconds: of prune and proof, one process.
        peak_gb: resident memory of the process, at most, in 10^9 bytes.
        refused: why it was not pruned; empty where it was.
        peer: what came of plain torch-pruning.
    """

    name: str
    macs: float = 0.0
    params: float = 0.0
    error: float = float("nan")
    control: float = float("nan")
    exact: bool = False
    runs: str = ""
    trains: str = ""
    reloads: str = ""
    seconds: float = 0.0
    peak_gb: float = 0.0
    refused: str = ""
    peer: str = ""

    @property
    def green(self) -> bool:
        """Whether it is pruned, exact, and works in every way."""
        return self.exact and self.runs == self.trains == self.reloads == OK


def measure_entry(entry: Entry, amount: float = 0.5) -> Row:
    """Prune a fresh model of ``entry``; what can't be built or pruned is a row with the reason."""
    row = Row(entry.name)
    torch.manual_seed(0)
    try:
        model = lively(entry.build().eval())
        start = time.perf_counter()
        result = _pruned(entry, model, amount)
        row.seconds = time.perf_counter() - start
    except (AssertionError, ImportError, RuntimeError, ValueError) as error:
        row.refused = first_line(error)
        return row
    assert result.proof is not None
    row.macs = 1 - result.after.macs / result.before.macs
    row.params = 1 - result.after.params / result.before.params
    row.error, row.control, row.exact = result.proof.error, result.proof.control_error, result.proof.exact
    row.peak_gb = peak_gb()
    row.runs = attempt(lambda: run(entry, result.model))
    row.reloads = attempt(lambda: _reload(entry, result))
    row.trains = attempt(lambda: train(entry, result.model))
    return row


def peak_gb() -> float:
    """Return the resident memory of this process, at most, in 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts KiB


def lively(model: nn.Module) -> nn.Module:
    """Draw what starts at zero, or nearly (layer scales, last norms): else the control could not fail."""
    for parameter in model.parameters():
        if parameter.abs().max() < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    return model


def _pruned(entry: Entry, model: nn.Module, amount: float) -> Any:
    """At ``amount`` of the MACs; where layers that stay whole allow less, at most of that."""
    inputs = entry.inputs() if entry.inputs else None
    try:
        return prune(model, amount, **HOW, example_inputs=inputs)
    except PruneError:
        most = _most(model, TraceInput(model, inputs))
        if not 0 < most <= amount:
            raise
        return prune(model, 0.9 * most, **HOW, example_inputs=inputs)


def _most(model: nn.Module, trace_input: TraceInput) -> float:
    """Return the largest fraction of the MACs that a prune can remove."""
    groups, costs = find_groups(model, trace_input), measure_model(model, trace_input)
    left = costs.total("macs", smallest(groups, limits_of(groups, Request(), ()), costs))
    return 1 - left / costs.totals.macs


def attempt(step: Callable[[], None]) -> str:
    """Return OK, or the first line of what was raised."""
    try:
        step()
    except Exception as error:  # a row says what went wrong, whatever it is
        return first_line(error)
    return OK


def first_line(error: BaseException) -> str:
    """Show an exception in a table's cell."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:100] if text else ''}"


def run(entry: Entry, model: nn.Module) -> None:
    """Run inference on one image, its usual way."""
    with torch.no_grad():
        if entry.inputs is not None:
            model.eval()(entry.inputs())
        else:
            model.eval()([{**_item(), "height": SIZE[0], "width": SIZE[1]}])


def train(entry: Entry, model: nn.Module) -> None:
    """Run one backward pass; every loss must be finite."""
    model.train()
    with EventStorage():
        if entry.inputs is not None:
            losses = flatten(model(torch.cat([entry.inputs()] * 2)))
        else:
            losses = model([_item(), _item()])
    total = torch.stack([loss.float().mean() for loss in losses.values()]).sum()
    assert torch.isfinite(total), "the loss is not finite"
    total.backward()


def _item() -> dict[str, Any]:
    """An image with all that any of Detectron2's architectures learns from."""
    height, width = SIZE
    gt = Instances(SIZE)
    gt.gt_boxes = Boxes(torch.tensor([[20.0, 30.0, 200.0, 220.0], [100.0, 10.0, 300.0, 120.0]]))
    gt.gt_classes = torch.tensor([0, 1])
    gt.gt_masks = BitMasks(torch.zeros(2, height, width, dtype=torch.bool))
    for mask, box in zip(gt.gt_masks.tensor, gt.gt_boxes.tensor.long().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = True
    points = gt.gt_boxes.get_centers()[:, None].repeat(1, KEYPOINTS, 1)
    gt.gt_keypoints = Keypoints(torch.cat([points, torch.full((2, KEYPOINTS, 1), 2.0)], dim=2))
    proposals = Instances(SIZE)
    proposals.proposal_boxes, proposals.objectness_logits = gt.gt_boxes, torch.ones(2)
    image = torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sem_seg = torch.zeros(SIZE, dtype=torch.long)
    return {"image": image, "instances": gt, "proposals": proposals, "sem_seg": sem_seg}


def _reload(entry: Entry, result: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.pth"
        save(result, path)
        loaded = load(path, entry.build())
    trace_input = TraceInput(loaded, entry.inputs() if entry.inputs else None)
    with torch.no_grad():
        want, got = trace_input.outputs(result.model.eval()), trace_input.outputs(loaded.eval())
    assert all(torch.equal(want[name], got[name]) for name in want), "outputs differ after loading"
