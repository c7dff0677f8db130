"""End to end, the pruned model finds what the masked one finds; another model does not."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

import d2prune
from d2prune.engine.detections import _agreement, compare_detections
from d2prune.errors import PruneError

CONFIGS = Path(__file__).parents[2] / "configs" / "BlendMask"


@pytest.fixture(scope="module")
def trained():
    """The shipped baseline, with a fifth of its MACs gone, so that much is still found."""
    torch.set_num_threads(1)
    cfg = d2prune.get_cfg()
    cfg.merge_from_file(str(CONFIGS / "digits_R_18.yaml"))
    cfg.MODEL.DEVICE = str(torch.get_default_device())
    model = build_model(cfg).eval()
    d2prune.PruningCheckpointer(model).load(str(CONFIGS / "digits_R_18.pth"))
    return model, d2prune.prune(model, 0.2, input_size=(128, 128))


def image():
    """A dark bar on noise: to a model of digits, a 1, or several."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 110, (128, 128, 3), dtype=np.uint8)
    bar = Image.fromarray(pixels)
    bar.paste((250, 250, 250), (58, 30, 68, 100))
    image = torch.as_tensor(np.array(bar).transpose(2, 0, 1).copy())
    return [{"image": image, "height": 128, "width": 128}]


def test_the_pruned_model_finds_what_the_masked_one_finds(trained):
    model, result = trained
    agreement = compare_detections(model, result, image())
    assert agreement.complete and agreement.matched > 0, str(agreement)
    assert agreement.score < 1e-3


def test_another_model_does_not(trained):
    model, result = trained
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.backbone.bottom_up.res2[0].conv1.weight.normal_()
    assert not compare_detections(other, result, image()).complete


def detections(boxes, scores, classes):
    found = Instances((100, 100))
    found.pred_boxes, found.scores = Boxes(torch.tensor(boxes)), torch.tensor(scores)
    found.pred_classes = torch.tensor(classes)
    return found


def test_pairs_are_of_one_class_and_each_detection_is_in_one():
    box = [0.0, 0.0, 10.0, 10.0]
    one = detections([box, box, [50.0, 50.0, 60.0, 60.0]], [0.9, 0.8, 0.7], [1, 1, 2])
    two = detections([box, [50.0, 50.0, 60.0, 60.0]], [0.6, 0.7], [1, 3])
    agreement = _agreement(one, two, 0.95)
    assert (agreement.masked, agreement.pruned, agreement.matched) == (3, 2, 1)
    assert agreement.score == pytest.approx(0.3) and "1 detections match, of 3" in str(agreement)


def test_a_model_without_instances_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    result = d2prune.prune(model, 0.3, example_inputs=torch.rand(1, 3, 8, 8))

    class Wrapped(nn.Module):
        def forward(self, inputs):
            return {}

    result = d2prune.PruneResult(**{**vars(result), "model": Wrapped(), "step": d2prune.PruneSpec("Wrapped")})
    with pytest.raises(PruneError, match="returns no 'instances'"):
        compare_detections(Wrapped(), result, image())
