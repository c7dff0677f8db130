"""What is mutated: a small pruned net's checkpoint in both of torch's formats, its spec, and a config."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from d2prune.checkpoint.writer import checkpoint_data
from d2prune.core.cut.spec import PruneSpec
from d2prune.engine.outputs import write_pruned_config
from d2prune.pruning import prune
from tests.core.nets import block, images, lively
from tests.tiny_blendmask import tiny_cfg


class Net(nn.Module):
    """Layers, groups, integer attributes, scaled keys and literals in its code: all that a spec can hold."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.wide = 24
        self.stem = block(3, width, 2)
        self.grouped = block(width, width, groups=4)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.up, self.head = (
            nn.Linear(width, width),
            nn.Linear(width, self.wide),
            nn.Linear(self.wide, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.grouped(self.stem(x)), 2)
        x = x.flatten(2).transpose(1, 2)
        parts = (self.query(x), self.key(x), self.value(x))
        q, k, v = (part.view(-1, 4, 2, 8).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.up(self.out(y)).view(-1, self.wide).relu())


@dataclass(frozen=True)
class Good:
    """A pruned net, and what is saved of it. Nothing in it is to be changed."""

    model: nn.Module
    spec: PruneSpec
    data: dict[str, Any]

    def saved(self, *, as_zip: bool) -> bytes:
        return written(self.data, as_zip=as_zip)

    def safetensors(self) -> bytes:
        return save(self.data["model"], {"prune_spec": self.spec.to_json()})


def written(data: Any, *, as_zip: bool) -> bytes:
    """The bytes of a file that torch.save writes."""
    file = io.BytesIO()
    torch.save(data, file, _use_new_zipfile_serialization=as_zip)
    return file.getvalue()


@cache
def good() -> Good:
    result = prune(lively(Net()).eval(), 0.4, example_inputs=images())
    data = checkpoint_data(result.model, with_struct=True)
    moment = {"step": 3, "exp_avg": torch.ones(2)}
    rest = {"iteration": 7, "optimizer": {"state": {0: moment}, "param_groups": [{"lr": 0.1, "params": [0]}]}}
    return Good(result.model, result.spec, {**data, **rest})


@cache
def config(folder: Path) -> str:
    """The text of a pruned model's config, which is also written to ``folder``."""
    return Path(write_pruned_config(tiny_cfg(), str(folder), str(folder / "model.pth"))).read_text()
