"""Images that can't be read are named, and passed over only where that is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from detectron2.data.common import MapDataset
from detectron2.utils.file_io import PathManager
from PIL import Image

from d2prune.errors import PruneError

logger = logging.getLogger(__name__)
Loader = TypeVar("Loader")
KEY = "MODEL.PRUNING.SKIP_UNREADABLE"


class UnreadableImageError(PruneError):
    """An image of a data set can't be read; the message names it."""


def name_unreadable(loader: Loader, skip: bool = False) -> Loader:
    """Let a loader of Detectron2's say which image its mapper failed on; any other is left as it is.

    Args:
        loader: of ``build_detection_train_loader`` or ``build_detection_test_loader``; changed in place.
        skip: whether another image takes the place of one that can't be read. Only for training.
    """
    found: Any = loader
    while found is not None and not isinstance(found, MapDataset):
        found = getattr(found, "dataset", None)
    if found is not None:
        found._map_func = _Mapper(found._map_func, skip)
    return loader


class _Mapper:
    def __init__(self, mapper: Callable[[Any], Any], skip: bool) -> None:
        self._mapper, self._skip = mapper, skip

    def __call__(self, image: Any) -> Any:
        try:
            return self._mapper(image)
        except Exception as error:
            file = image.get("file_name") if isinstance(image, dict) else None
            damage = _damage(file) if isinstance(file, str) else ""
            if not damage:
                raise
            if not self._skip:
                raise UnreadableImageError(
                    f"the image '{file}' can't be read ({damage}); mend it or take it out of the data set"
                    f" ({KEY} True trains without such images)",
                    keys=(KEY,),
                ) from error
            logger.warning("%s: the image '%s' is passed over (%s)", KEY, file, damage)
            return None


def _damage(file: str) -> str:
    """Return what is wrong with an image file; empty if it can be read."""
    try:
        with PathManager.open(file, "rb") as stream, Image.open(stream) as image:
            image.load()
    except Exception as error:  # Pillow's readers raise many kinds
        return f"{type(error).__name__}: {error}"
    return ""
