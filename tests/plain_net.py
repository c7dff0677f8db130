"""A small network of plain PyTorch, with the same weights each time, and what to run it on."""

import torch
from torch import nn

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(16 * 16, 5)).eval()
