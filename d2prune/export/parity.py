"""Eager against exported, on real images: every dense tensor, then the detections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from d2prune.adapters.images import random_images
from d2prune.errors import PruneError
from d2prune.export.dense import DenseModel
from d2prune.export.predictor import OnnxPredictor
from d2prune.report.matching import match

Size = tuple[int, int]
TOLERANCE = 1e-4
"""Largest error of a float32 output, relative to its largest magnitude."""
FLOOR = 1e-3
"""Outputs smaller than this are compared as if they were this large: float32 sums of larger numbers
leave absolute errors, and an output that is zero but for them has nothing to be relative to."""
SAME_BOX = 0.99
"""IoU from which two boxes of one class are the same detection."""
MISMATCH_LIMIT = 0.05
"""Fraction of detections without a counterpart, and of mask pixels that differ. Rounding moves few
across a threshold; a wrong decoder moves most."""


@dataclass(frozen=True)
class Parity:
    """How an exported model compares with the eager one.

    Attributes:
        sizes: (height, width) of the inputs that the dense outputs were compared on.
        errors: by dense output the largest error, relative to the output's largest magnitude
            (at least ``FLOOR``).
        images: how many real images the detections were compared on; 0: the tensors were compared
            on noise, because the caller gave no images.
        detections: of the eager model, on all of them.
        mismatches: detections of either model without a counterpart in the other.
        mask_error: differing mask pixels over all mask pixels, of matched detections.
    """

    sizes: tuple[Size, ...]
    errors: dict[str, float]
    images: int = 0
    detections: int = 0
    mismatches: int = 0
    mask_error: float = 0.0

    def __str__(self) -> str:
        worst = max(self.errors, key=lambda name: self.errors[name])
        sizes = " and ".join(f"{height}x{width}" for height, width in self.sizes)
        error = f"error <= {self.errors[worst]:.1e} ({worst})"
        dense = f"{len(self.errors)} dense outputs at {sizes}, {error}"
        if not self.images:
            return f"{dense} on noise; detections not compared: no images given"
        if not self.detections and not self.mismatches:
            return f"{dense}; detections not compared: neither model finds any on {self.images} images"
        return (
            f"{dense}; {self.detections} detections on {self.images} images, {self.mismatches} "
            f"unmatched, {self.mask_error:.2%} of mask pixels differ"
        )


def check_parity(
    eager: DenseModel,
    exported: OnnxPredictor,
    size: Size,
    batch: Sequence[dict[str, Any]],
) -> Parity:
    """Compare both models on real images.

    Args:
        eager: what was exported.
        exported: the result.
        size: (height, width) it was exported at; another size is compared as well.
        batch: Detectron2 input dicts; empty: noise stands in for images, and nothing is detected.

    Raises:
        PruneError: a dense output, or the detections, differ by more than the tolerance.
    """
    step = exported.settings["input"]["size_divisibility"]
    sizes = (size, (size[0] + step, size[1] + 2 * step))
    with torch.no_grad(), _plain_float32():
        errors = _dense_errors(eager, exported, sizes, batch)
        parity = Parity(sizes, errors)
        if batch:
            parity = _with_detections(parity, eager.model(list(batch)), exported(list(batch)))
    return parity


@contextmanager
def _plain_float32() -> Iterator[None]:
    """TF32 convolutions, the default on some accelerators, err by more than the tolerance."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, allow_tf32=False):
        yield


def _dense_errors(
    eager: DenseModel,
    exported: OnnxPredictor,
    sizes: Sequence[Size],
    batch: Sequence[dict[str, Any]],
) -> dict[str, float]:
    errors: dict[str, float] = {}
    device = next(eager.parameters()).device
    for size in sizes:
        images = _images(batch, size)
        found = exported.dense(images)
        for name, wanted in eager.outputs(images.to(device)).items():
            error = _relative_error(name, wanted, found[name], size)
            errors[name] = max(error, errors.get(name, 0.0))
    return errors


def _images(batch: Sequence[dict[str, Any]], size: Size) -> Tensor:
    """Return (2, 3, H, W) raw pixels: the first two images scaled to ``size``, or noise."""
    if not batch:
        return random_images(size, count=2)
    images = [item["image"][None].float() for item in (batch[0], batch[-1])]
    return torch.cat([F.interpolate(i, size, mode="bilinear", align_corners=False) for i in images])


def _relative_error(name: str, wanted: Tensor, found: Tensor, size: Size) -> float:
    where = f"of the exported model at {size[0]}x{size[1]}"
    if wanted.shape != found.shape:
        raise PruneError(
            f"output {name} {where} has the shape {tuple(found.shape)}; "
            f"expected {tuple(wanted.shape)}, the eager model's"
        )
    wanted = wanted.to(found.device)
    error = float((wanted - found).abs().max() / wanted.abs().max().clamp(min=FLOOR))
    if not error <= TOLERANCE:  # so that NaN fails too
        raise PruneError(
            f"output {name} {where} differs from the eager model's: error {error:.1e} of its "
            f"largest value (allowed {TOLERANCE:.0e})"
        )
    return error


def _with_detections(parity: Parity, eager: list[dict[str, Any]], exported: list[dict[str, Any]]) -> Parity:
    counted = total = mismatches = differing = pixels = 0
    for one, other in zip(eager, exported, strict=True):
        found = other["instances"]
        wanted = one["instances"].to(found.pred_boxes.device)
        pairs = match(wanted, found, SAME_BOX)
        counted += len(wanted)
        total += len(wanted) + len(found)
        mismatches += len(wanted) + len(found) - 2 * len(pairs)
        wrong, area = _mask_pixels(wanted, found, pairs)
        differing, pixels = differing + wrong, pixels + area
    _limit("detections", mismatches, total)
    _limit("mask pixels", differing, pixels)
    return Parity(parity.sizes, parity.errors, len(eager), counted, mismatches, differing / max(pixels, 1))


def _mask_pixels(wanted: Instances, found: Instances, pairs: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the mask pixels in which matched detections differ, and all of theirs."""
    if not pairs or not wanted.has("pred_masks"):
        return 0, 0
    rows, columns = zip(*pairs, strict=True)
    one, other = wanted.pred_masks[list(rows)], found.pred_masks[list(columns)]
    return int((one != other).sum()), int((one | other).sum())


def _limit(what: str, wrong: int, total: int) -> None:
    if wrong > MISMATCH_LIMIT * total:
        raise PruneError(
            f"the exported model's {what} are not the eager model's: {wrong} of {total} have no "
            f"counterpart (allowed {MISMATCH_LIMIT:.0%}), although the dense outputs agree; was it "
            "built by another config than the one given?"
        )
