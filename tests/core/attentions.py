"""Attention as it is written in the wild; each takes and gives (B, N, 32), with four heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Packed(nn.Module):
    """One layer makes queries, keys and values."""

    def __init__(self, dim=32, heads=4, kv_heads=4):
        super().__init__()
        self.dim, self.num_heads, self.kv_heads = dim, heads, kv_heads
        self.head_dim = dim // heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, dim + 2 * kv_heads * self.head_dim)
        self.proj = nn.Linear(dim, dim)

    def attend(self, q, k, v):
        return (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v


class Dino(Packed):
    """The original DINO's: the width of a head from that of the input; also gives the weights."""

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(B, N, C))


class Unbound(Packed):
    def forward(self, x):
        B, N, _ = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, self.dim))


class Chunked(Packed):
    def forward(self, x):
        q, k, v = (self._heads(t) for t in self.qkv(x).chunk(3, -1))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _heads(self, x):
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


class Sliced(Packed):
    def forward(self, x):
        qkv = self.qkv(x)
        q, k, v = qkv[..., : self.dim], qkv[..., self.dim : 2 * self.dim], qkv[..., 2 * self.dim :]
        q, k, v = (t.view(*t.shape[:2], -1, self.head_dim).transpose(1, 2) for t in (q, k, v))
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(*x.shape[:2], self.dim))


class GroupedHeads(Packed):
    """Two heads of queries to each of keys and values; the parts of the packed layer are unequal."""

    def __init__(self):
        super().__init__(kv_heads=2)

    def forward(self, x):
        B, N, _ = x.shape
        q, k, v = self.qkv(x).split([self.dim, *2 * [self.kv_heads * self.head_dim]], -1)
        q, k, v = (t.view(B, N, -1, self.head_dim).transpose(1, 2) for t in (q, k, v))
        k, v = (
            t[:, :, None].expand(B, 2, 2, N, self.head_dim).reshape(B, 4, N, self.head_dim) for t in (k, v)
        )
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(B, N, -1))


class Relative(Packed):
    """ViTDet's: what is added to the weights is a product of queries with tables."""

    def __init__(self):
        super().__init__()
        self.rel_pos = nn.Parameter(torch.randn(13, self.head_dim))

    def forward(self, x):
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, B * self.num_heads, N, -1).unbind(0)
        steps = torch.arange(N)[:, None] - torch.arange(N)[None] + N - 1
        bias = torch.einsum("bnc,nmc->bnm", q, self.rel_pos[steps])
        x = ((q * self.scale) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return self.proj(x.view(B, self.num_heads, N, -1).permute(0, 2, 1, 3).reshape(B, N, -1))


class Rotary(Packed):
    """Pairs of channels are turned by angles that a buffer holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequency", 0.5 ** torch.arange(self.head_dim // 2), persistent=False)

    def forward(self, x):
        B, N, _ = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        angle = (torch.arange(N)[:, None] * self.frequency).repeat_interleave(2, -1)
        q, k = (t * angle.cos() + self._turned(t) * angle.sin() for t in (q, k))
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(B, N, self.dim))

    def _turned(self, x):
        return torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)


class Separate(nn.Module):
    """Hugging Face's: three layers, and heads counted by -1."""

    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.head_dim = dim // heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (f(x).view(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = F.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5)
        return self.proj(x.transpose(1, 2).reshape(*x.shape[:1], x.shape[2], -1).contiguous())


class Cosine(Packed):
    """Swin V2's: queries and keys are normalised, so that only whole heads can go."""

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.rand(4, 1, 1))
        self.bias_table = nn.Parameter(torch.rand(49, 4))

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.logit_scale
        steps = torch.arange(N)[:, None] - torch.arange(N)[None] + N - 1
        bias = self.bias_table[steps.view(-1)].view(N, N, -1).permute(2, 0, 1)
        return self.proj(((weights + bias).softmax(-1) @ v).transpose(1, 2).reshape(B, N, C))


class Pooled(Packed):
    """MViT's: heads beside pictures, a depthwise convolution and a norm over each head's channels."""

    def __init__(self):
        super().__init__()
        self.pool = nn.Conv1d(self.head_dim, self.head_dim, 3, padding=1, groups=self.head_dim)
        self.norm = nn.LayerNorm(self.head_dim)

    def forward(self, x):
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = (self._pool(t.reshape(B * self.num_heads, N, -1)) for t in qkv.unbind(0))
        x = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.proj(x.view(B, self.num_heads, N, -1).transpose(1, 2).reshape(B, N, -1))

    def _pool(self, x):
        return self.norm(self.pool(x.transpose(1, 2)).transpose(1, 2))


class Windowed(Packed):
    """Swin V2's of torchvision: a second view of as many dimensions has other numbers in their places."""

    def forward(self, x):
        B, N, C = x.shape
        x = F.pad(x, (0, 0, 0, 16 - N))
        q, k, v = self.qkv(x).reshape(B, 16, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        mask = torch.ones(16, 16).tril()
        weights = weights.view(B, 1, self.num_heads, 16, 16) + mask
        x = weights.view(-1, self.num_heads, 16, 16).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, 16, C)[:, :N])


class Folded(Packed):
    """MViT's of timm: the batch is left to -1, of pictures with heads and of heads beside pictures."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(self.head_dim)

    def forward(self, x):
        B, N, _ = x.shape
        x = F.pad(x, (0, 0, 0, 16 - N))
        q, k, v = self.qkv(x).reshape(B, 16, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = (self._fold(t) for t in (q, k, v))
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(B, 16, -1)[:, :N])

    def _fold(self, x):
        x = x.reshape(-1, 8, 2, x.shape[-1])
        return self.norm(x).flatten(1, 2).reshape(-1, self.num_heads, 16, x.shape[-1])


class Transformer(nn.Module):
    """Two blocks on tokens (B, N, 8)."""

    def __init__(self, attention):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 32), nn.Linear(32, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.attentions = nn.ModuleList(attention() for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2)
        )

    def forward(self, x):
        x = self.embed(x)
        for i in range(2):
            x = x + self.attentions[i](self.norms[2 * i](x))
            x = x + self.mlps[i](self.norms[2 * i + 1](x))
        return self.head(x)


BY_CHANNEL = (Dino, Unbound, Chunked, Sliced, GroupedHeads, Relative, Rotary, Separate)
BY_HEAD = (Cosine, Pooled, Windowed, Folded)
