"""PyTorch's attention layer: unpruned, the narrow one is the same; pruned, it is exact and reloads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import d2prune
from d2prune.core.layers.attention import NarrowAttention, narrow


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


MASKS = {
    "none": {},
    "causal": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)},
    "padding": {"key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])},
    "by head": {"attn_mask": torch.randn(8, 5, 5)},
}


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", MASKS)
def test_unpruned_it_is_the_same_layer(name, batch_first, average):
    layer = nn.MultiheadAttention(16, 4, batch_first=batch_first)
    nn.init.normal_(layer.in_proj_bias)
    q, k, v = (torch.randn(2, 5, 16) if batch_first else torch.randn(5, 2, 16) for _ in range(3))
    wanted = layer(q, k, v, average_attn_weights=average, **MASKS[name])
    narrow(layer)
    assert type(layer) is NarrowAttention
    for got, want in zip(layer(q, k, v, average_attn_weights=average, **MASKS[name]), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_a_single_sequence_needs_no_batch():
    layer = nn.MultiheadAttention(16, 4, bias=False)
    x = torch.randn(5, 16)
    wanted, nothing = layer(x, x, x, need_weights=False)
    narrow(layer)
    got, none = layer(x, x, x, need_weights=False)
    torch.testing.assert_close(got, wanted)
    assert none is nothing is None


class Cross(nn.Module):
    """Queries of one kind look at another."""

    def __init__(self, need_weights=True):
        super().__init__()
        self.embed, self.other, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 3)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x):
        y, memory = self.norm(self.embed(x)), self.norm(self.other(x.flip(1)))
        return self.head(y + self.attention(y, memory, memory, need_weights=self.need_weights)[0])


def encoder():
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3))


@pytest.mark.parametrize("make", [Cross, lambda: Cross(False), encoder])
def test_pruned_it_is_exact_trains_and_reloads(make, tmp_path):
    x = torch.randn(2, 6, 8)
    result = d2prune.prune(make(), 0.3, allocation="uniform", example_inputs=x)
    rows = [row for row in result.coverage if row.name.endswith(("attention", "self_attn"))]
    assert result.proof.exact and rows and all(row.status == "pruned" for row in rows)
    result.model.train()(x).sum().backward()
    d2prune.save(result, tmp_path / "p.pth")
    loaded = d2prune.load(tmp_path / "p.pth", make()).eval()
    assert torch.equal(loaded(x), result.model.eval()(x))


def test_of_a_subclass_nothing_is_taken():
    class Own(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model = Cross()
    model.attention = Own(16, 4, batch_first=True)
    model.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    result = d2prune.prune(model, 0.1, example_inputs=torch.randn(2, 6, 8))
    assert result.proof.exact and result.model.attention.in_proj_weight.shape == (48, 16)
