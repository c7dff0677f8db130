"""The original DINO's attention: what plain torch-pruning says to it, and what d2prune makes of it."""

from __future__ import annotations

import pytest
import torch
import torch_pruning as tp
from torch import nn

import d2prune
from tests.core.attentions import Dino
from tests.each import each
from tests.pinned import pinned

THEIRS, TORCH = pinned("torch-pruning", "1.6.1"), pinned("torch", "2.14.1")

DIM, HEADS = 384, 6


class UnbindDino(Dino):
    """The usual cure: unbind in place of indexing; the width of a head is still that of the input."""

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(B, N, C))


class FixedDino(UnbindDino):
    """As timm and Hugging Face have it: the width of a head is an attribute."""

    def forward(self, x):
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(B, N, self.dim))


class Vit(nn.Module):
    """One block on tokens (B, N, 8)."""

    def __init__(self, attention=Dino):
        super().__init__()
        self.embed, self.head = nn.Linear(8, DIM), nn.Linear(DIM, 3)
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn = attention(DIM, HEADS, HEADS)
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x):
        x = self.embed(x)
        x = x + self.attn(self.norm1(x))
        return self.head(x + self.mlp(self.norm2(x)))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def tokens(batch=1):
    return torch.randn(batch, 5, 8)


def by_torch_pruning(model, heads=False):
    pruner = tp.pruner.MagnitudePruner(
        model,
        tokens(),
        importance=tp.importance.MagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[model.head],
        num_heads={model.attn.qkv: HEADS} if heads else {},
    )
    pruner.step()


@TORCH
@THEIRS
@pytest.mark.parametrize("heads", [False, True])
def test_torch_pruning_fails_on_indexed_queries(heads):
    with pytest.raises(IndexError, match="index 384 is out of bounds for dimension 0 with size 384"):
        by_torch_pruning(Vit(), heads)


@TORCH
@THEIRS
def test_unbind_alone_leaves_a_model_that_does_not_run():
    model = Vit(UnbindDino)
    by_torch_pruning(model)
    assert model.attn.qkv.out_features not in (DIM * 3 // 2, DIM * 3)
    with pytest.raises(RuntimeError, match=r"shape '\[1, 5, 3, 6, 32\]' is invalid for input of size"):
        model(tokens())


@THEIRS
def test_the_importance_has_another_name_by_now():
    assert not hasattr(tp.importance, "GroupNormImportance")
    assert issubclass(tp.importance.MagnitudeImportance, tp.importance.GroupMagnitudeImportance)


@THEIRS
def test_with_unbind_and_the_number_of_heads_torch_pruning_runs():
    model = Vit(UnbindDino)
    by_torch_pruning(model, heads=True)
    assert model.attn.qkv.out_features == DIM * 3 // 2 and model(tokens()).shape == (1, 5, 3)


@TORCH
@THEIRS
def test_widths_kept_as_attributes_are_left_to_the_user():
    model = Vit(FixedDino)
    by_torch_pruning(model, heads=True)
    with pytest.raises(RuntimeError, match=r"shape '\[1, 5, 3, 6, 64\]' is invalid for input of size"):
        model(tokens())
    model.attn.dim = DIM // 2
    model.attn.head_dim = DIM // 2 // HEADS
    assert model(tokens()).shape == (1, 5, 3)


@pytest.mark.parametrize("attention", [Dino, UnbindDino, FixedDino])
def test_d2prune_takes_them_as_they_are(attention, tmp_path):
    result = d2prune.prune(Vit(attention), 0.5, allocation="uniform", example_inputs=tokens())
    rows = {row.name: row for row in result.coverage}
    assert result.proof.exact and rows["attn.qkv"].status == rows["mlp.0"].status == "pruned"
    result.model.train()(tokens(2)).sum().backward()
    d2prune.save(result, tmp_path / "p.pth")
    loaded, x = d2prune.load(tmp_path / "p.pth", Vit(attention)).eval(), tokens(3)
    assert torch.equal(loaded(x), result.model.eval()(x))


@pytest.mark.parametrize("round_to", [1, 8])
def test_every_head_keeps_the_same_channels(round_to):
    result = d2prune.prune(Vit(), 0.4, round_to=round_to, example_inputs=tokens())
    kept = torch.tensor(result.spec.layers["attn.qkv"].out)
    heads = [kept[(kept >= i * 64) & (kept < (i + 1) * 64)] - i * 64 for i in range(3 * HEADS)]
    queries, keys, values = heads[:HEADS], heads[HEADS : 2 * HEADS], heads[2 * HEADS :]
    assert len(kept) < 3 * DIM and len(kept) % (3 * HEADS) == 0
    assert all(torch.equal(head, queries[0]) for head in each((*queries, *keys)))
    assert all(torch.equal(head, values[0]) for head in each(values))
    assert result.spec.layers["attn.proj"].inp == tuple((kept[kept >= 2 * DIM] - 2 * DIM).tolist())


def test_what_lies_under_the_norms_is_left_whole_and_said():
    result = d2prune.prune(Vit(), 0.3, example_inputs=tokens())
    rows = {row.name: row for row in result.coverage}
    assert rows["embed"].after == DIM and "LayerNorm" in rows["embed"].reason
