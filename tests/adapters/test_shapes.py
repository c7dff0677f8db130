"""After a prune, a backbone's output_shape() tells the channels that really come out."""

import pytest
import torch
from detectron2.modeling import Backbone, build_model
from torch import nn

import d2prune
from tests.modeling.small_models import RT, small_cfg


def test_output_shapes_are_those_of_the_features():
    for pairs in (
        (),
        RT,
        ("MODEL.RESNETS.DEPTH", 50, "MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone"),
    ):
        model = build_model(small_cfg(*pairs)).eval()
        pruned = d2prune.prune(model, 0.5, input_size=(192, 192), verify=False).model
        for backbone in (pruned.backbone, pruned.backbone.bottom_up):
            features = backbone(torch.zeros(1, 3, 192, 192))
            told = {name: shape.channels for name, shape in backbone.output_shape().items()}
            assert told == {name: features[name].shape[1] for name in told}
        for name, block in pruned.backbone.bottom_up.named_modules():
            if hasattr(block, "conv2"):
                assert block.in_channels == block.conv1.in_channels, name


class Levels(Backbone):
    """A backbone that d2prune has never heard of."""

    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 3, 2, 1)
        self._out_features = ["low", "high"]
        self._out_feature_channels = {"low": 16, "high": 24}
        self._out_feature_strides = {"low": 2, "high": 4}

    def forward(self, x):
        low = self.low(x).relu()
        return {"low": low, "high": self.high(low).relu()}


class Gated(Levels):
    """Its narrowest convolution is not the one that reads the pictures."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Conv2d(2, 1, 1)

    def forward(self, x):
        low = self.low(x).relu()
        both = torch.cat([low.mean(1, keepdim=True), low.amax(1, keepdim=True)], 1)
        return {"low": low, "high": self.high(low * self.gate(both)).relu()}


class Picky(Levels):
    def forward(self, x):
        if x.is_meta:
            raise RuntimeError("not on meta")
        return super().forward(x)


def pruned_backbone(kind):
    torch.manual_seed(0)
    model = nn.ModuleDict({"backbone": kind(), "head": nn.Conv2d(24, 2, 1)})
    image = torch.rand(1, 3, 64, 64)
    run = lambda m, x: m["head"](m["backbone"](x)["high"])  # noqa: E731
    return d2prune.prune(model, 0.5, allocation="uniform", example_inputs=image, forward_fn=run).model[
        "backbone"
    ]


@pytest.mark.parametrize("kind", [Levels, Gated])
def test_a_backbone_of_ones_own_is_asked(kind):
    backbone = pruned_backbone(kind)
    told = {name: shape.channels for name, shape in backbone.output_shape().items()}
    assert told == {"low": backbone.low.out_channels, "high": backbone.high.out_channels}
    assert told["high"] < 24


def test_one_that_does_not_answer_is_said(caplog):
    backbone = pruned_backbone(Picky)
    assert backbone.high.out_channels < 24
    assert "output_shape() of Picky may tell old widths: not on meta" in caplog.text
