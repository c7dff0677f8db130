"""After a prune, a backbone's output_shape() tells the channels that really come out."""

import torch
from detectron2.modeling import build_model
from small_models import RT, small_cfg

import d2prune


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
