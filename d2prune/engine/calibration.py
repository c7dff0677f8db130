"""The images that a prune is calibrated on: the first of DATASETS.TRAIN, through the trainer's own loader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from detectron2.config import CfgNode

from d2prune.core.plan.criteria import AUTO, criterion_of
from d2prune.data.unreadable import UnreadableImageError, name_unreadable
from d2prune.engine.held_out import held_out_files
from d2prune.errors import PruneError
from d2prune.pruning.calibration import Data, check_repair

logger = logging.getLogger(__name__)
Load = Callable[[CfgNode], Iterable[list[dict[str, Any]]]]
MISSING = (AssertionError, LookupError, OSError, PruneError)
"""What loaders raise for a data set that is not registered, or not on the disk."""
MOST, FEWEST, PIXELS = 240, 32, 50_000_000
"""By default there are 240 images, or fewer where these have 50 megapixels together, but at least 32."""


def calibration_data(cfg: CfgNode, load: Load) -> Data | None:
    """Return MODEL.PRUNING.CALIBRATION_IMAGES images with their labels; None where nothing asks for them.

    All ranks must call it, because loaders agree on a seed; the first one's images are used.

    Raises:
        PruneError: if the keys ask for images that are not there, an image can't be read, or REPAIR is
            unknown.
    """
    keys = cfg.MODEL.PRUNING
    count, needs = keys.CALIBRATION_IMAGES, keys.CRITERION != AUTO and criterion_of(keys.CRITERION).needs
    if not isinstance(count, int) or count < -1:
        raise PruneError(
            f"MODEL.PRUNING.CALIBRATION_IMAGES is {count!r}; expected -1 (240, or fewer large "
            "ones) or an integer >= 0",
            keys=("MODEL.PRUNING.CALIBRATION_IMAGES",),
        )
    check_repair(keys.REPAIR)
    if not count or not (needs or keys.CRITERION == AUTO or keys.REPAIR):
        return None
    try:
        batches = name_unreadable(load(cfg), keys.SKIP_UNREADABLE)
        images = list(_first(batches, count, held_out_files(cfg)))
        if not images:
            raise PruneError(f"{cfg.DATASETS.TRAIN} has no images")
    except UnreadableImageError:
        raise
    except MISSING as error:
        if needs:
            raise PruneError(
                f"MODEL.PRUNING.CRITERION '{keys.CRITERION}' needs images of DATASETS.TRAIN: {error}",
                keys=("MODEL.PRUNING.CRITERION", "DATASETS.TRAIN"),
            ) from error
        logger.warning("no images to calibrate on, DATASETS.TRAIN can't be read: %s", error)
        return None
    return Data(images, repair=keys.REPAIR)


def _first(
    batches: Iterable[list[dict[str, Any]]], count: int, others: Collection[str]
) -> Iterator[list[dict[str, Any]]]:
    """Yield ``count`` images, each a batch; with -1 as many as ``MOST``, ``FEWEST`` and ``PIXELS`` say.

    Images of the files in ``others`` are passed over.
    """
    seen = pixels = 0
    for sample in (sample for batch in batches for sample in batch):
        if sample.get("file_name") in others:
            continue
        yield [sample]
        height, width = sample["image"].shape[-2:]
        seen, pixels = seen + 1, pixels + height * width
        if seen == count or (count < 0 and (seen == MOST or (seen >= FEWEST and pixels >= PIXELS))):
            return
