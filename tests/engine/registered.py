"""The tests' data sets, for commands in processes of their own (--import); TINY_DATA names the folder."""

from __future__ import annotations

import os
from pathlib import Path

from detectron2.data.datasets import register_coco_instances

for _folder in (Path(os.environ["TINY_DATA"]) / name for name in ("tiny_train", "tiny_val")):
    register_coco_instances(_folder.name, {}, str(_folder / "coco.json"), str(_folder))
