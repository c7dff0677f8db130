"""Images that can't be read end a run by their name, or are passed over where that is asked for."""

from __future__ import annotations

from itertools import islice

import pytest
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data.detection_utils import read_image
from PIL import Image

from d2prune.data.unreadable import UnreadableImageError, name_unreadable


@pytest.fixture
def images(tmp_path):
    """Three images, of which the second is cut short."""
    for number in range(3):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"{number}.png")
    data = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(data[: len(data) // 2])
    return [{"file_name": str(tmp_path / f"{n}.png"), "width": 40, "height": 30} for n in range(3)]


def mapper(image):
    return {**image, "image": read_image(image["file_name"], "BGR")}


def training(images, **kwargs):
    return build_detection_train_loader(images, mapper=mapper, total_batch_size=1, **kwargs)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_image_is_named(images, workers):
    loader = name_unreadable(training(images, num_workers=workers))
    with pytest.raises(
        UnreadableImageError, match=r"the image '.*/1.png' can't be read \(.*Error: .*SKIP_UNREADABLE"
    ):
        list(islice(loader, 3))
    loader = name_unreadable(build_detection_test_loader(images, mapper=mapper, num_workers=workers))
    with pytest.raises(UnreadableImageError, match=r"the image '.*/1.png' can't be read"):
        list(loader)


def test_a_missing_image_is_named(images):
    images[1]["file_name"] += "x"
    with pytest.raises(
        UnreadableImageError, match=r"the image '.*/1.pngx' can't be read \(FileNotFoundError"
    ):
        list(islice(name_unreadable(training(images)), 3))


@pytest.mark.parametrize("grouped", [True, False])
def test_the_image_is_passed_over_where_that_is_asked_for(images, caplog, grouped):
    loader = name_unreadable(training(images, aspect_ratio_grouping=grouped), skip=True)
    seen = {image["file_name"][-5] for batch in islice(loader, 6) for image in batch}
    assert seen == {"0", "2"} and "1.png' is passed over" in caplog.text


def test_a_fault_of_the_mapper_stays_its_own(images):
    def broken(image):
        raise RuntimeError("a bug")

    loader = name_unreadable(
        build_detection_train_loader(images[:1], mapper=broken, total_batch_size=1), True
    )
    with pytest.raises(RuntimeError, match="a bug"):
        next(iter(loader))


def test_other_loaders_are_left_as_they_are():
    batches = [[{"image": 1}]]
    assert name_unreadable(batches) is batches
