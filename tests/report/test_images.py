"""Example images: the same ones each time, readable, with truth and every model."""

import io

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from torch import nn

from d2prune.errors import PruneError
from d2prune.report import example_images
from d2prune.report.drawing import SIDES, Drawing, draw
from d2prune.report.images import choose
from tests.each import each


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.fixture
def draw_rows(cfg, scenes):
    records, metadata = scenes
    mapper = DatasetMapper(cfg, is_train=False)

    def draw(models, count=2, threshold=0.05):
        arguments = {"mapper": mapper, "threshold": threshold}
        return example_images(records, models, metadata, count, **arguments)

    return draw


def test_a_row_shows_truth_and_every_model(build, draw_rows):
    rows = draw_rows({"baseline": build(), "pruned": build()})
    assert len(rows) == 2
    for row in each(rows):
        assert [p.caption for p in row.images] == ["ground truth", "baseline", "pruned"]
        truth, *found = [pixels(p.png) for p in row.images]
        assert truth.shape == (256, 256, 3)  # 128 px scenes, enlarged
        assert all((truth != one).any() for one in each(found))


def test_drawn_alike_every_time(build, draw_rows):
    model = build()
    assert draw_rows({"a": model}) == draw_rows({"a": model})


def test_nothing_below_the_threshold_is_drawn(build, draw_rows):
    (row,) = draw_rows({"none": build(), "some": build()}, 1, threshold=1.1)
    _, none, some = [pixels(p.png) for p in row.images]
    assert (none == some).all()


def test_modes_are_kept(build, draw_rows):
    model = build().train()
    draw_rows({"a": model}, 1)
    assert model.training


def test_models_without_instances_are_refused(draw_rows):
    class Semantic(nn.Module):
        def forward(self, batch):
            return [{"sem_seg": torch.zeros(2, 4, 4)}]

    with pytest.raises(PruneError, match="model 'x' gives sem_seg"):
        draw_rows({"x": Semantic()})


def test_choice_is_spread_over_annotated_images():
    records = [{"file_name": i, "annotations": [0] if i % 2 else []} for i in range(20)]
    assert [r["file_name"] for r in choose(records, 3)] == [3, 11, 17]
    assert [r["file_name"] for r in choose(records, 99)] == list(range(1, 20, 2))
    assert [r["file_name"] for r in choose([{"file_name": 0}], 4)] == [0]
    assert choose([], 4) == []


@pytest.mark.parametrize("shape", [(20, 40), (300, 400), (700, 1400)])
def test_size_is_readable(shape):
    empty = Drawing(np.zeros((0, 4)), [], [])
    height, width, _ = pixels(draw(np.zeros((*shape, 3), np.uint8), empty)).shape
    assert SIDES[0] <= max(height, width) <= SIDES[1]
    assert width / height == pytest.approx(shape[1] / shape[0], rel=0.02)


def test_masks_colour_what_they_cover():
    mask = np.zeros((1, 256, 256), bool)
    mask[0, 60:120, 30:90] = True
    shown = pixels(draw(np.full((256, 256, 3), 100, np.uint8), Drawing(
        np.array([[150.0, 150.0, 200.0, 400.0]]), [3], ["3"], mask)))  # fmt: skip
    assert (shown[61:119, 31:89] != 100).any(axis=2).all()
    assert (shown[:60] == 100).all() and (shown[130:140] == 100).all()
    assert (shown[150:, 150] != 100).any(axis=1).all()  # the box, cut at the border


@pytest.mark.parametrize(
    "segmentation",
    [
        [[10, 10, 50, 10, 50, 50, 10, 50]],
        {"size": [64, 64], "counts": [650, 40] + [24, 40] * 39 + [64 * 64 - 650 - 40 - 64 * 39]},
    ],
    ids=["polygon", "uncompressed RLE"],
)
def test_every_form_of_mask_is_read(segmentation, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    truth = {"bbox": [10, 10, 40, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {"file_name": str(tmp_path / "x.png"),
              "annotations": [truth | {"segmentation": segmentation}]}  # fmt: skip
    nameless = MetadataCatalog.get("d2prune_test_nameless")
    (row,) = example_images([record], {}, nameless, 1, mapper=dict)
    inside = pixels(row.images[0].png).any(axis=2)
    assert inside[70:190, 50:190].all() and not inside[210:].any()
