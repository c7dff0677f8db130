"""PyTorch's own attention layer, with heads of any width.

``F.multi_head_attention_forward`` works a head's width out from ``embed_dim``; once channels of
heads are gone, :class:`NarrowAttention` takes over, under the same parameter names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NarrowAttention(nn.MultiheadAttention):
    """A ``nn.MultiheadAttention`` whose heads are as wide as ``in_proj_weight`` makes them.

    ``head_dim`` stays that of the layer as it was built, because the scale is derived from it.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as ``nn.MultiheadAttention`` does: (L, N, E), (N, L, E) with ``batch_first``, or (L, E)."""
        inputs, single = [query, key, value], query.dim() == 2
        if single:
            inputs = [x[None] for x in inputs]
        elif not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None,) * 3
        weights = self.in_proj_weight.chunk(3)
        q, k, v = (self._heads(F.linear(*rest)) for rest in zip(inputs, weights, biases, strict=True))
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
        for mask in (attn_mask, key_padding_mask):
            if mask is not None:
                scores = scores + self._added(mask, scores, mask is key_padding_mask)
        chances = F.dropout(scores.softmax(-1), self.dropout, self.training)
        result = self.out_proj((chances @ v).transpose(1, 2).flatten(2))
        if single:
            result, chances = result[0], chances[0]
        elif not self.batch_first:
            result = result.transpose(0, 1)
        if not need_weights:
            return result, None
        return result, chances.mean(-3) if average_attn_weights else chances

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return heads.transpose(1, 2)

    def _added(self, mask: Tensor, scores: Tensor, padding: bool) -> Tensor:
        """Return a mask as a term to add to the scores (N, H, L, S); True means "do not attend"."""
        if not mask.is_floating_point():
            mask = scores.new_zeros(mask.shape).masked_fill(mask, float("-inf"))
        if padding:
            return mask.reshape(-1, 1, 1, scores.shape[-1])
        return mask if mask.dim() == 2 else mask.reshape(scores.shape)


def narrow(layer: nn.MultiheadAttention) -> None:
    """Make a ``nn.MultiheadAttention`` a ``NarrowAttention``, in place, and turn off its fused path."""
    if type(layer) is nn.MultiheadAttention:
        layer.__class__ = NarrowAttention
    layer._qkv_same_embed_dim = False


def is_foreign(layer: nn.Module) -> bool:
    """Return whether ``layer`` is a subclass with its own ``forward``, which can't be replaced."""
    known = (nn.MultiheadAttention.forward, NarrowAttention.forward)
    return isinstance(layer, nn.MultiheadAttention) and type(layer).forward not in known


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Switch off the fused operator of ``nn.MultiheadAttention``, which hides its matrix products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
