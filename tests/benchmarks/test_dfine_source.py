"""The original D-FINE (github.com/Peterande/D-FINE), where its root is on the path: nothing of it is here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import d2prune
from d2prune.benchmarks.row import lively

pytest.importorskip("src.zoo.dfine", reason="the root of a D-FINE checkout is not on PYTHONPATH")

from src.core import YAMLConfig, yaml_utils

from tests.each import each

CONFIGS = Path(yaml_utils.__file__).resolve().parents[2] / "configs" / "dfine"
LEAST = {"n": 0.36, "s": 0.31, "m": 0.31, "l": 0.40, "x": 0.40}  # of the parameters, at 0.3 of the channels
SIDE = {"n": 320}  # with two levels, 300 queries need a larger picture
SIZES = ["n", *(pytest.param(size, marks=pytest.mark.slow) for size in ("s", "m", "l", "x"))]


def build(size):
    """A size by its own config, which D-FINE merges into what it read before: a default argument."""
    yaml_utils.load_config.__defaults__[0].clear()
    side = SIDE.get(size, 160)
    torch.manual_seed(0)
    config = YAMLConfig(
        str(CONFIGS / f"dfine_hgnetv2_{size}_coco.yml"),
        HGNetv2={"pretrained": False},
        eval_spatial_size=[side, side],
    )
    return lively(config.model.eval()), config, torch.rand(1, 3, side, side)


def both(model, x):
    """What the encoder gives, and what the whole model does."""
    features = model.encoder(model.backbone(x))
    return {"encoder": features, **model.decoder(features)}


@pytest.mark.parametrize("size", SIZES)
def test_every_size_gets_smaller_exactly_and_works(size, tmp_path):
    model, config, x = build(size)
    result = d2prune.prune(model, 0.3, target="channels", allocation="uniform", example_inputs=x)
    assert result.proof.exact and set(result.proof.compared) == {"output.pred_logits", "output.pred_boxes"}
    assert 1 - result.after.params / result.before.params >= LEAST[size]
    assert all(row.reason for row in each(row for row in result.coverage if row.status != "pruned"))
    d2prune.save(result, tmp_path / "p.pth")
    loaded = d2prune.load(tmp_path / "p.pth", build(size)[0]).eval()
    with torch.no_grad():
        want, got = (m(torch.cat([x, 1 - x])) for m in (result.model.eval(), loaded))
    assert all(torch.equal(want[name], got[name]) for name in each(want))
    assert not torch.allclose(*want["pred_logits"], atol=1e-3)  # of two pictures
    trains(result.model, config.criterion, x)


def trains(model, criterion, x):
    """A step with denoising and auxiliary losses; of what is frozen (a stem, reg_scale) nothing moves."""
    targets = [{"labels": torch.tensor([1, 2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]] * 2)}] * 2
    out = model.train()(torch.cat([x, x]), targets=targets)
    losses = criterion(out, targets, epoch=0, step=0, global_step=0, epoch_step=1)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in each(losses.values()))
    assert all(p.requires_grad for p in each(p for p in model.parameters() if p.grad is not None))


def test_encoder_outputs_are_exact():
    model, _, x = build("n")
    result = d2prune.prune(model, 0.5, example_inputs=x, forward_fn=both)
    assert result.proof.exact and result.proof.error < 1e-12
    assert {"output.encoder.0", "output.encoder.1", "output.pred_boxes"} <= set(result.proof.compared)


class Solver:
    """What a method beside DetSolver.val finds in self."""

    def __init__(self, model, config, loader):
        self.model, self.ema, self.criterion = model, None, config.criterion
        self.postprocessor, self.val_dataloader, self.seen = config.postprocessor, loader, []

    def val_prune(self, amount, **options):
        module = self.ema.module if self.ema else self.model
        images, _ = next(iter(self.val_dataloader))
        result = d2prune.prune(module, amount, example_inputs=images[:1])
        return result, evaluate(result.model, self.postprocessor, self.val_dataloader, **options)


def evaluate(model, postprocessor, loader, need_json=False):
    """As src.solver.det_engine.evaluate calls a model; forks add need_json."""
    assert hasattr(model, "encoder") and hasattr(model, "decoder")
    model.eval()
    found = {}
    with torch.no_grad():
        for images, targets in loader:
            sizes = torch.stack([t["orig_size"] for t in targets])
            results = postprocessor(model(images), sizes)
            found |= {t["image_id"]: r for t, r in zip(targets, results, strict=True)}
    return ({}, found) if need_json else {}


@pytest.mark.parametrize("options", [{}, {"need_json": True}])
def test_a_method_like_val_evaluates_the_complete_pruned_model(options):
    model, config, x = build("n")
    size = torch.tensor(x.shape[-2:])
    loader = [(x, [{"orig_size": size, "image_id": i}]) for i in range(2)]
    result, evaluated = Solver(model, config, loader).val_prune(0.3, **options)
    assert result.proof.exact and type(result.model) is type(model)
    if options:
        assert set(evaluated[1]) == {0, 1} and evaluated[1][0]["boxes"].shape == (300, 4)


def test_configs_of_two_sizes_do_not_mix():
    """Else the parameters that these tests count would be those of an S with N's dim_feedforward."""
    counts = {size: sum(p.numel() for p in build(size)[0].parameters()) for size in ("n", "s")}
    assert counts == {"n": 3_782_693, "s": 10_321_877}
