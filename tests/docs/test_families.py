"""Families that the guides' table of "supported" models names, and docs/zoo.md does not have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import segmentation

import d2prune
from tests.each import each


def double(inp, out):
    convs = [(nn.Conv2d(i, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)) for i in (inp, out)]
    return nn.Sequential(*convs[0], nn.ReLU(), *convs[1], nn.ReLU())


class UNet(nn.Module):
    """Ronneberger et al. (arXiv 1505.04597), with batch norms and padding."""

    def __init__(self, widths=(16, 32, 64, 128)):
        super().__init__()
        ups = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.down = nn.ModuleList(double(i, o) for i, o in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in ups)
        self.merge = nn.ModuleList(double(2 * o, o) for _, o in ups)
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x):
        skips = []
        for i, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


def deeplab():
    return segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, aux_loss=True)


@pytest.mark.parametrize("build", [UNet, deeplab])
def test_segmentation_networks_are_halved_exactly_and_train(build, tmp_path):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64)
    result = d2prune.prune(build(), 0.5, example_inputs=x)
    assert result.proof.exact and abs(result.reached - 0.5) <= 0.01
    out = result.model.train()(x)
    sum(t.sum() for t in (out.values() if isinstance(out, dict) else [out])).backward()
    d2prune.save(result, tmp_path / "pruned.pth")
    loaded = d2prune.load(tmp_path / "pruned.pth", build())
    pairs = zip(loaded.state_dict().values(), result.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in each(pairs))


def tiny_llama():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 100}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaModel(transformers.LlamaConfig(**sizes, **heads))


def tiny_gpt2():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 100, "n_embd": 64, "n_layer": 1, "n_head": 4}
    return transformers.GPT2Model(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def hidden_states(model, inputs):
    return model(**inputs, use_cache=False).last_hidden_state


def tokens():
    return {"input_ids": torch.randint(0, 100, (1, 12))}


def test_what_is_said_of_language_models():
    torch.manual_seed(0)
    given = {"example_inputs": tokens(), "forward_fn": hidden_states}
    result = d2prune.prune(tiny_llama(), 0.3, **given)
    status = {row.name: row.status for row in result.coverage}
    assert result.proof.exact
    assert status["layers.0.mlp.up_proj"] == status["layers.0.self_attn.v_proj"] == "pruned"
    with pytest.raises(d2prune.PruneError, match="nothing was pruned"):  # its Conv1D is a layer of its own
        d2prune.prune(tiny_gpt2(), 0.3, **given)
