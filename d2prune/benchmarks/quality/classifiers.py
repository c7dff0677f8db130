"""Two classifiers of the handwritten digits, trained in a minute: a residual network and a transformer."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.resnet import Bottleneck

from d2prune.adapters import TraceInput
from d2prune.data.sources import load_digits
from d2prune.files import atomic_write
from d2prune.pruning.budget import Scores
from d2prune.pruning.calibration import Losses

BATCH, IMAGES, EPOCHS = 64, 512, 30
Pair = tuple[Tensor, Tensor]


@dataclass
class Classifier:
    """A family that is trained here, when it is first loaded.

    Attributes:
        name: the row's name.
        build: makes a model with random weights for (N, 1, 28, 28) images.
        folder: where the trained model is kept.
    """

    name: str
    build: Callable[[], nn.Module]
    folder: Path = Path("output/quality")
    round_to: int = 4

    def load(self) -> nn.Module:
        """See :meth:`Family.load`; trains with seed 0 if it was not trained before."""
        path = self.folder / f"{self.name}.pth"
        torch.manual_seed(0)
        model = self.build()
        if path.is_file():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        model = self.tune(model, EPOCHS * len(load_digits("train").labels) // BATCH, 0)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            torch.save(model.state_dict(), file)
        return model

    def trace_input(self, model: nn.Module) -> TraceInput:
        """See :meth:`Family.trace_input`."""
        return TraceInput(model, _pairs("train", 2), lambda model, pair: model(pair[0]))

    def batches(self, seed: int) -> tuple[list[Any], Losses | None]:
        """See :meth:`Family.batches`."""
        images = itertools.islice(_shuffled(seed), IMAGES // BATCH)
        return list(images), lambda model, pair: F.cross_entropy(model(pair[0]), pair[1])

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> Scores:
        """See :meth:`Family.evaluate`: the share of digits named right."""
        images, labels = _pairs("val")
        return {"accuracy": 100 * float((model.eval()(images).argmax(1) == labels).float().mean())}

    def tune(self, model: nn.Module, iterations: int, seed: int, *, pruned: bool = True) -> nn.Module:
        """See :meth:`Family.tune`."""
        model = copy.deepcopy(model).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, iterations + 1, pct_start=0.1)
        for images, labels in itertools.islice(_shuffled(seed), iterations):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            rate.step()
        return model.eval()


def _pairs(split: str, count: int | None = None) -> Pair:
    """Return (N, 1, 28, 28) images of mean about 0 and variance about 1, and (N,) labels."""
    pool = load_digits(split)
    images = torch.from_numpy(pool.images[:count, None]).float()
    return (images / 255 - 0.13) / 0.31, torch.from_numpy(pool.labels[:count])


def _shuffled(seed: int) -> Iterator[Pair]:
    images, labels = _pairs("train")
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            yield images[rows], labels[rows]


def _resnet() -> nn.Module:
    model = ResNet(Bottleneck, [2, 2, 2, 2], num_classes=10, width_per_group=32)
    model.conv1 = nn.Conv2d(1, 64, 3, stride=2, padding=1, bias=False)  # the images have 28 px
    model.maxpool = nn.Identity()  # type: ignore[assignment]
    return model


def _transformer() -> nn.Module:
    model = VisionTransformer(28, 4, 4, 4, 96, 192, num_classes=10)
    model.conv_proj = nn.Conv2d(1, 96, 4, 4)
    return model


CLASSIFIERS = {"ResNet": _resnet, "ViT": _transformer}
"""How to build each."""
