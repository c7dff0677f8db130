"""The mapper: augmentations follow the config, instances stay right, bases get their target."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_api

from d2prune.config import get_cfg
from d2prune.data import DatasetMapperWithBasis
from d2prune.data.augment import InstanceCrop, enlarge_window
from d2prune.data.mapper import basis_sem_file
from d2prune.errors import PruneError

HEIGHT, WIDTH = 40, 60
needs_basis_sem = pytest.mark.skipif(
    not importlib.util.find_spec("d2prune.modeling.blendmask")
    or not importlib.util.find_spec("d2prune.modeling.blendmask.basis_sem"),
    reason="d2prune.modeling.blendmask.basis_sem is not there",
)


def rectangle(x0, y0, x1, y1, category=0, rle=True, iscrowd=0):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[y0:y1, x0:x1] = 1
    polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "segmentation": mask_api.encode(np.asfortranarray(mask)) if rle else polygon,
        "iscrowd": iscrowd,
    }


@pytest.fixture
def record(tmp_path):
    """One image whose pixels in the instances are 200 and elsewhere 0."""
    folder = tmp_path / "train2017"
    folder.mkdir()
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[5:15, 4:20] = image[20:38, 30:56] = 200
    Image.fromarray(image).save(folder / "a.png")
    annotations = [rectangle(4, 5, 20, 15, 3), rectangle(30, 20, 56, 38, 7)]
    name = str(folder / "a.png")
    return {"file_name": name, "height": HEIGHT, "width": WIDTH, "annotations": annotations}


def config(make=get_cfg, **changes):
    cfg = make()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TEST = HEIGHT
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def cropping(**changes):
    return config(
        INPUT__CROP__ENABLED=True,
        INPUT__CROP__TYPE="absolute",
        INPUT__CROP__SIZE=[20, 30],
        **changes,
    )


def kinds(cfg, is_train=True):
    return [type(a).__name__ for a in DatasetMapperWithBasis(cfg, is_train).augmentations.augs]


def test_masks_follow_the_image(record):
    mapper = DatasetMapperWithBasis(config(), True)
    for _ in range(6):  # flipped or not
        sample = mapper(record)
        covered = sample["instances"].gt_masks.tensor.any(dim=0)
        assert (covered == (sample["image"][0] == 200)).all()
        assert sample["instances"].gt_classes.tolist() == [3, 7]


def test_argument_is_not_changed(record):
    DatasetMapperWithBasis(config(), True)(record)
    assert len(record["annotations"]) == 2 and "image" not in record


def test_plain_detectron2_config_is_enough(record):
    sample = DatasetMapperWithBasis(config(detectron2_cfg), True)(record)
    assert "basis_sem" not in sample and len(sample["instances"]) == 2
    assert kinds(config(detectron2_cfg)) == ["ResizeShortestEdge", "RandomFlip"]


def test_flip_obeys_both_keys():
    assert "RandomFlip" in kinds(config())
    assert "RandomFlip" not in kinds(config(INPUT__HFLIP_TRAIN=False))
    assert "RandomFlip" not in kinds(config(INPUT__RANDOM_FLIP="none"))
    assert "RandomFlip" in kinds(config(INPUT__HFLIP_TRAIN=False, INPUT__RANDOM_FLIP="vertical"))


def test_crop_comes_before_resize_and_only_in_training():
    assert kinds(cropping())[:2] == ["InstanceCrop", "ResizeShortestEdge"]
    assert kinds(cropping(), is_train=False) == ["ResizeShortestEdge"]


def test_inference_drops_annotations(record):
    sample = DatasetMapperWithBasis(config(MODEL__BASIS_MODULE__LOSS_ON=True), False)(record)
    assert not {"annotations", "instances", "basis_sem"} & set(sample)
    assert sample["image"].shape == (3, HEIGHT, WIDTH)


def test_crowd_and_empty_instances_are_dropped(record):
    record["annotations"] += [rectangle(0, 0, 9, 9, iscrowd=1), rectangle(40, 2, 40, 9)]
    sample = DatasetMapperWithBasis(config(), True)(record)
    assert sample["instances"].gt_classes.tolist() == [3, 7]


def test_only_crowd_gives_no_instances(record):
    record["annotations"] = [rectangle(0, 0, 9, 9, iscrowd=1)]
    assert len(DatasetMapperWithBasis(cropping(), True)(record)["instances"]) == 0


def test_cropped_boxes_are_tight(record):
    mapper = DatasetMapperWithBasis(cropping(), True)
    for _ in range(20):
        instances = mapper(record)["instances"]
        tight = instances.gt_masks.get_bounding_boxes().tensor
        assert len(instances) and (instances.gt_boxes.tensor == tight).all()


def test_crop_holds_the_centre_of_an_instance():
    boxes = np.array([[4.0, 5, 20, 15], [30, 20, 56, 38]])
    crop = InstanceCrop("absolute", (12, 12))
    for _ in range(50):
        t = crop.get_transform(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8), boxes)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - [t.x0, t.y0]
        assert ((centres >= -1) & (centres <= 13)).all(axis=1).any()
        assert (t.h, t.w) == (12, 12)


def test_crop_without_instances_is_a_plain_crop():
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    t = InstanceCrop("absolute", (12, 16)).get_transform(image, np.zeros((0, 4)))
    assert (t.h, t.w) == (12, 16)


def test_instances_stay_whole_unless_they_may_be_cut(record):
    mapper = DatasetMapperWithBasis(cropping(INPUT__CROP__CROP_INSTANCE=False), True)
    crop = mapper.augmentations.augs[0]
    assert not crop.may_cut
    mapper.augmentations.augs[1:] = []
    for _ in range(20):
        areas = mapper(record)["instances"].gt_masks.tensor.sum(dim=(1, 2)).tolist()
        assert areas and set(areas) <= {16 * 10, 26 * 18}


def test_window_grows_until_no_box_is_cut():
    boxes = np.array([[8.0, 0, 14, 6], [13, 5, 20, 9], [30, 30, 40, 40]])
    assert enlarge_window(np.array([0, 0, 10, 4]), boxes).tolist() == [0, 0, 20, 9]


def test_unknown_crop_type_is_named():
    with pytest.raises(PruneError, match="INPUT.CROP.TYPE is 'half'.*'relative_range'"):
        DatasetMapperWithBasis(config(INPUT__CROP__ENABLED=True, INPUT__CROP__TYPE="half"), True)


def test_rotation_needs_opencv_and_says_so(record):
    cfg = config(INPUT__IS_ROTATE=True)
    if importlib.util.find_spec("cv2") is None:
        with pytest.raises(PruneError, match="INPUT.IS_ROTATE.*pip install opencv"):
            DatasetMapperWithBasis(cfg, True)
        return
    mapper = DatasetMapperWithBasis(cfg, True)
    assert isinstance(mapper.augmentations.augs[0], T.RandomRotation)
    for _ in range(8):
        instances = mapper(record)["instances"]
        assert (instances.gt_boxes.tensor == instances.gt_masks.get_bounding_boxes().tensor).all()


def test_polygons_stay_polygons(record):
    record["annotations"] = [rectangle(4, 5, 20, 15, 3, rle=False)]
    cfg = config(INPUT__MASK_FORMAT="polygon", INPUT__HFLIP_TRAIN=False)
    instances = DatasetMapperWithBasis(cfg, True)(record)["instances"]
    assert instances.gt_masks.polygons[0][0].tolist() == [4, 5, 20, 5, 20, 15, 4, 15]


def test_run_length_masks_need_bitmask(record):
    with pytest.raises(PruneError, match="INPUT.MASK_FORMAT.*'bitmask'"):
        DatasetMapperWithBasis(config(INPUT__MASK_FORMAT="polygon"), True)(record)


def test_unknown_mask_format_is_named():
    with pytest.raises(PruneError, match="'rle'; allowed: 'polygon', 'bitmask'"):
        DatasetMapperWithBasis(config(INPUT__MASK_FORMAT="rle"), True)


def test_basis_target_from_file_follows_the_image(record):
    path = basis_sem_file(record["file_name"])
    assert path.endswith("thing_train2017/a.npz")
    labels = np.asarray(Image.open(record["file_name"]))[..., 0] // 50  # 4 in the instances
    Path(path).parent.mkdir()
    np.savez(path, mask=labels)
    mapper = DatasetMapperWithBasis(config(MODEL__BASIS_MODULE__LOSS_ON=True), True)
    for _ in range(6):
        sample = mapper(record)
        assert sample["basis_sem"].dtype == torch.long
        assert (sample["basis_sem"] == sample["image"][0].long() // 50).all()


@needs_basis_sem
@pytest.mark.parametrize("rle", [True, False])
def test_basis_target_from_instances(record, rle):
    record["annotations"] = [
        rectangle(4, 5, 20, 15, 3, rle),
        rectangle(30, 20, 56, 38, 7, rle),
    ]
    cfg = config(MODEL__BASIS_MODULE__LOSS_ON=True, INPUT__MASK_FORMAT="bitmask" if rle else "polygon")
    sample = DatasetMapperWithBasis(cfg, True)(record)
    target = sample["basis_sem"]
    assert target.dtype == torch.long and target.shape == (HEIGHT, WIDTH)
    assert ((target > 0) == (sample["image"][0] == 200)).all()
    assert sorted(target.unique().tolist()) == [0, 4, 8]


@needs_basis_sem
def test_image_without_instances_has_a_background_target(record):
    record["annotations"] = []
    sample = DatasetMapperWithBasis(config(MODEL__BASIS_MODULE__LOSS_ON=True), True)(record)
    assert sample["basis_sem"].shape == (HEIGHT, WIDTH) and not sample["basis_sem"].any()


def test_no_source_of_a_basis_target_is_an_error(record):
    cfg = config(MODEL__BASIS_MODULE__LOSS_ON=True, MODEL__MASK_ON=False)
    with pytest.raises(PruneError, match="MODEL.MASK_ON True"):
        DatasetMapperWithBasis(cfg, True)(record)


@pytest.mark.parametrize(
    ("arrays", "words"), [({"m": np.zeros(2)}, "no array 'mask'"), ({"mask": np.zeros(2)}, "shape")]
)
def test_bad_basis_file_is_named(record, tmp_path, arrays, words):
    (tmp_path / "thing_train2017").mkdir()
    np.savez(basis_sem_file(record["file_name"]), **arrays)
    with pytest.raises(PruneError, match=words):
        DatasetMapperWithBasis(config(MODEL__BASIS_MODULE__LOSS_ON=True), True)(record)
