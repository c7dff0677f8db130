"""What plain torch-pruning makes of D-FINE: the failures that the guide explains."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

import torch_pruning as tp
from torch import nn

from tests.benchmarks.small_detrs import detections, detr, pictures
from tests.pinned import pinned

pytestmark = pinned("torch-pruning", "1.6.1")


class Backbone(nn.Module):
    """The backbone alone, as the question prunes it."""

    def __init__(self):
        super().__init__()
        self.net = detr("DFineForObjectDetection").model.backbone.model

    def forward(self, x):
        return self.net(x).feature_maps


def cut(model, **options):
    pruner = tp.pruner.MagnitudePruner(
        model, pictures(), tp.importance.MagnitudeImportance(), pruning_ratio=0.3, **options
    )
    pruner.step()
    return model


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_parts_of_a_split_with_several_readers_end_in_an_index_error():
    with pytest.raises(IndexError):
        cut(detr("DFineForObjectDetection"), forward_fn=detections)


def test_frozen_norms_keep_their_width():
    model = cut(Backbone())
    with pytest.raises(RuntimeError):
        model(pictures())


def test_aligned_to_the_common_multiple_of_all_groups_nothing_is_pruned():
    """Of the depthwise convolutions' 16, 24 and 32."""
    assert size(cut(Backbone(), round_to=96)) == size(Backbone())
