"""The embedded data set "digits": real handwritten digits on photographs, made as COCO files.

Layout under the root: ``images/{train,val}/NNNNN.jpg``, ``digits_{train,val,val_mini}.json`` and
``digits.json``, the record of the recipe. ``digits_val_mini`` is the first 200 scenes of val.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api
from tqdm import tqdm

from d2prune.errors import PruneError

from .catalog import CLASS_NAMES
from .scenes import SCENE_SIZE, Scene, compose_scene
from .sources import load_digits, load_photographs

RECIPE_FILE = "digits.json"
RECIPE_VERSION = 2  # raise it with every change that alters a pixel or a mask
VAL_MINI_SCENES = 200
SPLITS = ("train", "val")


@dataclass(frozen=True)
class DigitsRecipe:
    """The settings that determine every byte of the set: numbers of scenes, seed, recipe version."""

    train: int = 5000
    val: int = 1000
    seed: int = 0
    version: int = RECIPE_VERSION

    def __post_init__(self) -> None:
        for name in SPLITS:
            if getattr(self, name) < 1:
                raise PruneError(f"--{name} {getattr(self, name)}: the number of scenes must be 1 or more")


@dataclass(frozen=True)
class DigitsReport:
    """The result of :func:`make_digits`; ``reused`` is whether the set was there already."""

    root: Path
    recipe: DigitsRecipe
    reused: bool
    seconds: float

    def __str__(self) -> str:
        what = "reused the complete set in" if self.reused else "made"
        counts = f"{self.recipe.train} training and {self.recipe.val} validation scenes"
        return f"{what} {self.root}: {counts}, {self.seconds:.1f} s"


def make_digits(
    output: str | os.PathLike[str], recipe: DigitsRecipe | None = None, processes: int | None = None
) -> DigitsReport:
    """Make the data set in ``output``, or reuse the one there if it is complete and of the same recipe.

    The result depends on the recipe alone, not on the number of processes. The set is built in a
    sibling folder and renamed at the end, so an interrupted run leaves nothing that looks whole.

    Args:
        output: the folder that will hold the set; it must be absent, empty or hold the same set.
        recipe: numbers of scenes and seed; 5,000 and 1,000 scenes by default.
        processes: how many processes draw scenes; by default one per core, at most 8.

    Raises:
        PruneError: ``output`` holds something else, or a source package is missing.
    """
    start = time.perf_counter()
    root, recipe = Path(output), recipe or DigitsRecipe()
    workers = _worker_count(processes, recipe)
    reused = _is_complete(root, recipe)
    if not reused:
        _require_free(root, recipe)
        with _building_folder(root) as folder:
            _fill(folder, recipe, workers)
            _publish(folder, root, recipe)
    return DigitsReport(root, recipe, reused, time.perf_counter() - start)


def _worker_count(processes: int | None, recipe: DigitsRecipe) -> int:
    if processes is None:
        # Starting a process costs seconds (it imports torch); small sets are quicker without.
        return min(os.cpu_count() or 1, 8) if recipe.train + recipe.val > 1000 else 1
    if processes < 1:
        raise PruneError(f"--processes {processes}: the number of processes must be 1 or more")
    return processes


def _is_complete(root: Path, recipe: DigitsRecipe) -> bool:
    """Return whether ``root`` holds the whole set of this recipe."""
    names = [RECIPE_FILE, *(f"digits_{name}.json" for name in (*SPLITS, "val_mini"))]
    if not all((root / name).is_file() for name in names):
        return False
    if (root / RECIPE_FILE).read_text() != json.dumps(asdict(recipe)):
        return False
    images = root / "images"
    return all(len(list((images / split).glob("*.jpg"))) == getattr(recipe, split) for split in SPLITS)


def _require_free(root: Path, recipe: DigitsRecipe) -> None:
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        found = root / RECIPE_FILE
        there = found.read_text() if found.is_file() else "files that are no digits data set"
        raise PruneError(
            f"--output {root} already holds {there}, or a damaged copy, not the set of "
            f"{asdict(recipe)}; name another folder, or delete that set if nobody needs it"
        )


@contextmanager
def _building_folder(root: Path) -> Iterator[Path]:
    """Make a temporary folder beside ``root`` (so on the same disk); remove it at the end if it is there."""
    root.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.absolute().parent))
    try:
        folder.chmod(0o755)  # mkdtemp's 0o700 would lock other users out of the finished set
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, root: Path, recipe: DigitsRecipe) -> None:
    try:
        folder.rename(root)
    except OSError as error:
        if not _is_complete(root, recipe):  # another process may have finished the same set first
            raise PruneError(f"cannot rename the finished set to --output {root}: {error}") from error


def _fill(folder: Path, recipe: DigitsRecipe, workers: int) -> None:
    for load in (partial(load_digits, "train"), load_photographs):
        load()  # a missing package is reported here, before any worker starts
    with _mapper(workers) as mapper:
        for split in SPLITS:
            (folder / "images" / split).mkdir(parents=True)
            count = getattr(recipe, split)
            draw = partial(_draw_scene, folder / "images" / split, split, recipe.seed)
            scenes = mapper(draw, range(count))
            records = list(tqdm(scenes, f"digits {split}", count, unit="scene"))
            _write_coco(folder / f"digits_{split}.json", records)
            if split == "val":
                _write_coco(folder / "digits_val_mini.json", records[:VAL_MINI_SCENES])
    (folder / RECIPE_FILE).write_text(json.dumps(asdict(recipe)))


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable[dict[str, Any]]]]:
    """Yield a function like ``map`` that spreads calls over ``workers`` processes and keeps the order."""
    if workers == 1:
        yield map
        return
    # Not "fork": the calling process may hold threads (torch, OpenMP) that do not survive it.
    # The fork server imports this module, and so torch, once for all workers.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([__name__])
    with context.Pool(workers) as pool:
        yield partial(pool.imap, chunksize=32)


def _draw_scene(folder: Path, split: str, seed: int, index: int) -> dict[str, Any]:
    """Draw scene ``index``, write its image, and return its COCO image and annotation records."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = compose_scene(rng, load_digits(split), load_photographs())
    name = f"{index:05d}.jpg"
    Image.fromarray(scene.image).save(folder / name, quality=92, subsampling=0)
    image = {"id": index + 1, "file_name": name, "height": SCENE_SIZE, "width": SCENE_SIZE}
    return {"image": image, "annotations": _annotations(scene, index + 1)}


def _annotations(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    rles = mask_api.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0).astype(np.uint8)))
    return [
        {
            "image_id": image_id,
            "category_id": int(label) + 1,
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            "bbox": mask_api.toBbox(rle).tolist(),
            "area": int(mask_api.area(rle)),
            "iscrowd": 0,
        }
        for label, rle in zip(scene.labels, rles, strict=True)
    ]


def _write_coco(path: Path, records: list[dict[str, Any]]) -> None:
    annotations = [entry for record in records for entry in record["annotations"]]
    content = {
        "info": {"description": "d2prune digits"},
        "images": [record["image"] for record in records],
        # COCO's evaluation takes an annotation id of 0 for "no match", so ids start at 1.
        "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, 1)],
    }
    path.write_text(json.dumps(content))
