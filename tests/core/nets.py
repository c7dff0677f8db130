"""Small nets, one for each way in which channels hang together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def block(inp: int, out: int, stride: int = 1, groups: int = 1, norm=nn.BatchNorm2d):
    conv = nn.Conv2d(inp, out, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(conv, norm(out), nn.ReLU())


def group_norm(groups: int) -> Callable[[int], nn.Module]:
    return lambda channels: nn.GroupNorm(groups, channels)


class Chain(nn.Sequential):
    """conv-bn-relu, three times, and a predictor with a bias."""

    def __init__(self, width: int = 24, norm=nn.BatchNorm2d):
        super().__init__(
            block(3, width, 2, norm=norm),
            block(width, 2 * width, 2, norm=norm),
            block(2 * width, width, norm=norm),
            nn.Conv2d(width, 5, 1),
        )


class Residual(nn.Module):
    def __init__(self, width: int = 16, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = block(3, width, 2, norm=norm)
        self.one = nn.Sequential(block(width, width, norm=norm), nn.Conv2d(width, width, 3, 1, 1))
        self.two = nn.Sequential(block(width, 2 * width, 2, norm=norm), nn.Conv2d(2 * width, 2 * width, 1))
        self.shortcut = nn.Conv2d(width, 2 * width, 1, 2)
        self.head = nn.Conv2d(2 * width, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        x = (x + self.one(x)).relu()
        x = (self.shortcut(x) + self.two(x)).relu()
        return self.head(x)


class Dense(nn.Module):
    """DenseNet: every layer reads the concatenation of all before it, behind a norm."""

    def __init__(self, growth: int = 12):
        super().__init__()
        self.stem = nn.Conv2d(3, growth, 3, 2, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(growth * i), nn.ReLU(), nn.Conv2d(growth * i, growth, 3, 1, 1))
            for i in range(1, 4)
        )
        self.head = nn.Sequential(nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, 3, 1))

    def forward(self, x):
        parts = [self.stem(x)]
        for layer in self.layers:
            parts.append(layer(torch.cat(parts, 1)))
        return self.head(torch.cat(parts, 1))


class Flat(nn.Module):
    """Channels become blocks of features in front of a linear layer."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.body = nn.Sequential(block(3, width, 2), block(width, width, 2), nn.AdaptiveAvgPool2d(3))
        self.fc1 = nn.Linear(width * 9, 32)
        self.fc2 = nn.Linear(32, 7)

    def forward(self, x):
        return self.fc2(self.fc1(self.body(x).flatten(1)).relu())


class Mobile(nn.Module):
    """Inverted residual: expansion, depthwise, projection."""

    def __init__(self, width: int = 12, norm=nn.BatchNorm2d):
        super().__init__()
        wide = 4 * width
        self.stem = block(3, width, 2)
        self.expand = nn.Sequential(nn.Conv2d(width, wide, 1, bias=False), norm(wide), nn.ReLU6())
        self.depthwise = block(wide, wide, groups=wide, norm=norm)
        self.project = nn.Sequential(nn.Conv2d(wide, width, 1), nn.BatchNorm2d(width))
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.project(self.depthwise(self.expand(x))))


class Grouped(nn.Module):
    """ResNeXt block, and a grouped convolution that changes the width."""

    def __init__(self, width: int = 16, groups: int = 4):
        super().__init__()
        self.stem = block(3, width, 2)
        self.reduce = block(width, 2 * width)
        self.grouped = block(2 * width, 2 * width, groups=groups)
        self.expand = nn.Conv2d(2 * width, width, 1)
        self.wider = block(width, 2 * width, groups=groups)
        self.head = nn.Conv2d(2 * width, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        x = (x + self.expand(self.grouped(self.reduce(x)))).relu()
        return self.head(self.wider(x))


class Split(nn.Module):
    """The two halves of one layer are added: channel i is tied to channel i + C / 2."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = block(3, 2 * width, 2)
        self.mid = nn.Conv2d(width, 2 * width, 3, 1, 1)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        a, b = self.stem(x).chunk(2, 1)
        c, d = self.mid(a + b).chunk(2, 1)
        return self.head(c * d.sigmoid())


class Upsample(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.down = nn.Sequential(block(3, width, 2), block(width, 2 * width, 2))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.norm = nn.BatchNorm2d(width)
        self.again = nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        return self.head(self.again(self.norm(self.up(self.down(x))).relu()))


class Shared(nn.Module):
    """One tower for all levels, with a norm per level, as FCOS-RT's heads."""

    def __init__(self, width: int = 16, levels: int = 3):
        super().__init__()
        self.stem = block(3, width, 2)
        self.laterals = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(levels))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in range(2))
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(width) for _ in range(levels)) for _ in range(2)
        )
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        x, out = self.stem(x), []
        for level, lateral in enumerate(self.laterals):
            y = lateral(nn.functional.avg_pool2d(x, 2**level))
            for conv, norms in zip(self.convs, self.norms, strict=True):
                y = norms[level](conv(y)).relu()
            out.append(self.head(y))
        return out


class TwoOutputs(nn.Module):
    """A predictor that another layer reads too, and a feature that is itself an output."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.body = nn.Sequential(block(3, width, 2), block(width, width))
        self.logits = nn.Conv2d(width, 6, 1)
        self.hidden = nn.Conv2d(6, width, 1)
        self.boxes = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        logits = self.logits(self.body(x))
        return {"logits": logits, "boxes": self.boxes(self.hidden(logits).relu())}


class Slopes(nn.Module):
    """PReLU with a slope per channel, and one with a single slope."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.PReLU(),
            nn.Conv2d(width, 4, 1),
        )

    def forward(self, x):
        return self.layers(x)


class LayerScale(nn.Module):
    """Bare parameters over channels, (C, 1, 1) as ConvNeXt's layer scale in this layout."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.gamma = nn.Parameter(torch.rand(width, 1, 1))
        self.conv = nn.Conv2d(width, width, 3, 1, 1)
        self.offset = nn.Parameter(torch.rand(1, width, 1, 1))
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.gamma * self.conv(x).relu() + self.offset)


class Normed(nn.Module):
    """LayerNorm over the channels, between linear layers; the hidden layer is free of it."""

    def __init__(self, width: int = 24, norm: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.inp = nn.Linear(10, width)
        self.norm = norm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.norm(self.inp(x))
        return self.head(x + self.down(self.up(x).relu()))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem, self.conv = block(3, width, 2), block(width, width)
        self.squeeze = nn.Conv2d(width, 8, 1)
        self.excite = nn.Conv2d(8, width, 1)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        x = self.conv(self.stem(x))
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(x * gate)


class OneGate(nn.Module):
    """A gate of one channel, broadcast over all (spatial attention)."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem, self.conv = block(3, width, 2), block(width, width)
        self.gate = nn.Conv2d(width, 1, 3, 1, 1)
        self.last = nn.Conv2d(width, width, 3, 1, 1)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        x = self.conv(self.stem(x))
        return self.head(self.last(x * self.gate(x).sigmoid()).relu())


class Attention(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 4, 1)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 32), nn.Linear(32, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x + self.down(self.up(x).relu()))


class Recurrent(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.up, self.inp = nn.Linear(6, 32), nn.Linear(32, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.out, self.head = nn.Linear(width, 24), nn.Linear(24, 3)

    def forward(self, x):
        x, _ = self.lstm(self.inp(self.up(x).relu()))
        return self.head(self.out(x).relu())


class Words(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.embedding = nn.Embedding(30, width)
        self.up, self.head = nn.Linear(width, 40), nn.Linear(40, 3)

    def forward(self, x):
        return self.head(self.up(self.embedding(x)).relu())


def images(size: int = 24, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, norms and statistics all different, so that no two channels are alike by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1 and tensor.numel() > 1:
                positive = name.endswith(("weight", "running_var"))
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(noise + 0.5 if positive else noise - 0.5)
    return model


CONVOLUTIONAL: dict[str, Callable[[], nn.Module]] = {
    "chain": Chain,
    "residual": Residual,
    "concat": Dense,
    "flatten": Flat,
    "depthwise": Mobile,
    "grouped": Grouped,
    "groupnorm": lambda: Chain(norm=group_norm(8)),
    "groupnorm residual": lambda: Residual(norm=group_norm(4)),
    "groupnorm depthwise": lambda: Mobile(norm=group_norm(8)),
    "split": Split,
    "transposed": Upsample,
    "shared": Shared,
    "two outputs": TwoOutputs,
    "prelu": Slopes,
    "bare parameter": LayerScale,
    "gate": Gate,
    "one gate": OneGate,
}
