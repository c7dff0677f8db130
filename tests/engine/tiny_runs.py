"""A data set of a few drawn rectangles, and the pipeline's commands on it."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import default_argument_parser
from PIL import Image

from tests.tiny_blendmask import SIDE, TINY, device, tiny_cfg

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("one", "two", "three")
TRAINING = {
    "DATASETS.TRAIN": ("tiny_train",),
    "DATASETS.TEST": ("tiny_val",),
    "SOLVER.MAX_ITER": 2,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.CHECKPOINT_PERIOD": 100,
    "SOLVER.WARMUP_ITERS": 0,
    "TEST.EVAL_PERIOD": 0,
}


def write_coco(folder, count, seed):
    """COCO JSON with ``count`` pictures of coloured rectangles, as polygons."""
    rng, images, annotations = np.random.default_rng(seed), [], []
    folder.mkdir()
    for index in range(1, count + 1):
        picture = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        for _ in range(3):
            label = int(rng.integers(len(CLASSES)))
            x, y = (int(v) for v in rng.integers(0, SIDE // 2, 2))
            w, h = (int(v) for v in rng.integers(SIDE // 4, SIDE // 2, 2))
            picture[y : y + h, x : x + w, label] = 255
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append({
                "id": len(annotations) + 1, "image_id": index, "category_id": label + 1, "iscrowd": 0,
                "bbox": [x, y, w, h], "area": w * h, "segmentation": [outline],
            })  # fmt: skip
        Image.fromarray(picture).save(folder / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": SIDE, "width": SIDE})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))
    return str(folder / "coco.json"), str(folder)


def pairs_of(mapping):
    return [x for pair in mapping.items() for x in pair]


def run_cfg(output, *pairs):
    cfg = tiny_cfg(*pairs_of(TRAINING), "OUTPUT_DIR", str(output), *pairs)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    return cfg


def train_net():
    """tools/train_net.py as a module."""
    if "d2prune_train_net" not in sys.modules:
        spec = importlib.util.spec_from_file_location("d2prune_train_net", ROOT / "tools" / "train_net.py")
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules["d2prune_train_net"]


def command(config, output, *words):
    """Runs tools/train_net.py's main in this process, with its own arguments."""
    options = {**TINY, **TRAINING, "MODEL.DEVICE": device(), "OUTPUT_DIR": str(output)}
    flags = [word for word in words if str(word).startswith("--")]
    opts = [str(x) for x in (*pairs_of(options), *words[len(flags) :])]
    args = default_argument_parser().parse_args(["--config-file", str(config), *flags, *opts])
    args.imports = []
    with loggers_put_back():
        return train_net().main(args)


@contextmanager
def loggers_put_back():
    """Detectron2's setup_logger adds handlers for good, and stops what caplog listens to."""
    loggers = [logging.getLogger(name) for name in ("d2prune", "detectron2", "fvcore")]
    before = [(logger.propagate, logger.level, list(logger.handlers)) for logger in loggers]
    try:
        yield
    finally:
        for logger, (propagate, level, handlers) in zip(loggers, before, strict=True):
            logger.propagate, logger.level, logger.handlers[:] = propagate, level, handlers


def weights_of(path):
    return torch.load(path, map_location="cpu", weights_only=True)["model"]


def log_of(folder):
    return (Path(folder) / "log.txt").read_text()
