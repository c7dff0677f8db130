"""The decoder does to the dense outputs what the eager model does to them."""

import json

import pytest
import torch

from d2prune.errors import PruneError
from d2prune.export.decode import BlendMaskDecoder, build_decoder, decoder_of
from d2prune.export.dense import DenseModel
from tests.export.narrow_models import (
    FIVE_LEVELS,
    PANOPTIC,
    SHARED_TOWERS,
    narrow_cfg,
    narrow_model,
    same_results,
)


class Decoded:
    """The eager network with the decoder behind it."""

    def __init__(self, model, cfg):
        self.dense = DenseModel(model)
        settings = {"name": decoder_of(model).name, **decoder_of(model).settings(cfg)}
        self.decoder = build_decoder(json.loads(json.dumps(settings)))

    @torch.no_grad()
    @torch.no_grad()
    def __call__(self, items):
        """Items of one size, a multiple of 32: there is nothing to pad."""
        images = torch.stack([item["image"] for item in items])
        size = tuple(images.shape[-2:])
        wanted = [(item.get("height", size[0]), item.get("width", size[1])) for item in items]
        outputs = self.dense.outputs(images.to(next(self.dense.parameters())))
        return self.decoder(outputs, [size] * len(items), wanted)


@pytest.mark.parametrize("arch", ["BlendMask", "OneStageDetector"])
@pytest.mark.parametrize(
    "pairs",
    [
        [],
        FIVE_LEVELS,
        SHARED_TOWERS,
        ["MODEL.FCOS.THRESH_WITH_CTR", False, "MODEL.FCOS.NMS_TH", 0.3],
        ["MODEL.BLENDMASK.ATTN_SIZE", 5, "MODEL.BLENDMASK.TOP_INTERP", "nearest"],
        ["MODEL.BASIS_MODULE.NUM_BASES", 3, "MODEL.BLENDMASK.BOTTOM_RESOLUTION", 28],
    ],
    ids=str,
)
def test_decoded_is_eager(pytestconfig, arch, pairs):
    cfg = narrow_cfg(pytestconfig, arch, *pairs)
    model = narrow_model(cfg, pruned=False)
    same_results(model, Decoded(model, cfg), sizes=[(160, 128)] * 2)


def test_panoptic_is_eager(pytestconfig):
    cfg = narrow_cfg(pytestconfig, "BlendMask", *PANOPTIC)
    model = narrow_model(cfg, pruned=False)
    same_results(model, Decoded(model, cfg), sizes=[(160, 128)] * 2)


def test_subclass_has_its_parents_decoder(pytestconfig):
    model = narrow_model(narrow_cfg(pytestconfig, "BlendMask"), pruned=False)
    model.__class__ = type("MyBlendMask", (type(model),), {})
    assert decoder_of(model) is BlendMaskDecoder


def test_unknown_decoder_is_refused():
    with pytest.raises(PruneError, match="decoder 'yolo'; expected one of: fcos, blendmask"):
        build_decoder({"name": "yolo"})
