"""Teaches d2prune MyMetaArch, and the layer that it brings with it."""

from __future__ import annotations

import d2prune
from d2prune.adapters.images import features_of
from d2prune.adapters.rois import TRACED, fixed_boxes, pool
from my_package.models import Dense

d2prune.register_layer(
    Dense,
    out={"kernel": 1, "shift": 0},
    inp={"kernel": 0},
    after_cut=lambda layer: setattr(layer, "outputs", layer.kernel.shape[1]),
)


@d2prune.register_adapter("my_package.models.MyMetaArch")
class MyAdapter(d2prune.Adapter):
    def dense(self, model, images, training_branches):
        feature = features_of(model, images)["p3"]
        boxes = fixed_boxes(images, TRACED if training_branches else model.kept)
        outputs = {
            "scores": model.scores(model.places(feature)),
            "closer": model.closer(pool(model.pooler, [feature], boxes).flatten(1)),
        }
        if training_branches and hasattr(model, "auxiliary"):
            outputs["auxiliary"] = model.auxiliary(feature)
        return outputs

    def training_only(self, model):
        return {"auxiliary": "backbone.fpn_output3"}

    def after_resize(self, model):
        super().after_resize(model)
        model.width = model.tower[0].out_channels
