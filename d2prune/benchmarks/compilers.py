"""Whether a pruned model is as plain as it was: traced, compiled, exported, run by onnxruntime."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.modeling.backbone import MViT, SwinTransformer, ViT
from torch import Tensor, nn

from d2prune.adapters.base import flatten
from d2prune.benchmarks.entries import Entry
from d2prune.benchmarks.libraries import noise_image
from d2prune.benchmarks.row import first_line, lively
from d2prune.pruning import prune

CLOSE = 1e-4  # of an output's largest value, in float32
Way = Callable[[nn.Module, Tensor], Sequence[Tensor]]
HEAD = ("architecture", "attributes", "keys", "calls", "hooks", "jit.trace", "compile", "export", "ONNX")


@dataclass(frozen=True)
class Plainness:
    """What came of one architecture.

    Attributes:
        name: of the entry.
        attributes: how many integer attributes were set.
        keys: how many layers' rows were scaled for narrower heads.
        calls: how many calls in code had their numbers changed, and in which classes.
        hooks: how many hooks the pruned model carries.
        ways: by way of running, "equal", or what went wrong; "as unpruned" where neither model can be run so.
    """

    name: str
    attributes: int
    keys: int
    calls: str
    hooks: int
    ways: dict[str, str]

    def cells(self) -> tuple[str, ...]:
        """A line of the table under HEAD."""
        return (
            self.name,
            str(self.attributes),
            str(self.keys),
            self.calls,
            str(self.hooks),
            *self.ways.values(),
        )


def measure_plainness(entry: Entry, amount: float = 0.15) -> Plainness:
    """Prune a fresh model of ``entry``, which takes tensors, and run it in every way."""
    assert entry.inputs is not None, "architectures with adapters take lists of dicts"
    torch.manual_seed(0)
    model, x = lively(entry.build().eval()), entry.inputs()
    result = prune(model, amount, allocation="uniform", example_inputs=x)
    pruned, spec = Plain(result.model).eval(), result.spec
    classes = dict.fromkeys(type(result.model.get_submodule(path)).__name__ for path in spec.calls)
    calls = sum(map(len, spec.calls.values()))
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pruned.modules())
    ways = {name: _way(way, Plain(model).eval(), pruned, x) for name, way in WAYS.items()}
    attributes = sum(map(len, spec.attributes.values()))
    changed = f"{calls} ({', '.join(classes)})" if calls else "0"
    return Plainness(entry.name, attributes, len(spec.scales), changed, hooks, ways)


class Plain(nn.Module):
    """The model with its outputs as a flat tuple of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the model."""
        return tuple(flatten(self.model(x)).values())


def _way(way: Way, model: nn.Module, pruned: nn.Module, x: Tensor) -> str:
    try:
        with torch.no_grad():
            return _compared(way(pruned, x), pruned(x))
    except Exception as error:  # whatever a compiler raises is its answer
        try:
            way(model, x)
        except Exception:
            return "as unpruned: fails"
        return first_line(error)


def _compared(got: Sequence[Tensor], want: Sequence[Tensor]) -> str:
    pairs = list(zip(got, want, strict=True))
    worst = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)
    return "equal" if worst <= CLOSE else f"differs by {worst:.0e}"


def _compiled(model: nn.Module, x: Tensor) -> Sequence[Tensor]:
    torch.compiler.reset()
    out: Sequence[Tensor] = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    return out


def _exported(model: nn.Module, x: Tensor) -> Sequence[Tensor]:
    out: Sequence[Tensor] = torch.export.export(model, (x,)).module()(x)
    return out


def _by_onnxruntime(model: nn.Module, x: Tensor) -> Sequence[Tensor]:
    import onnxruntime

    buffer = io.BytesIO()
    program: Any = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(out) for out in session.run(None, {session.get_inputs()[0].name: x.numpy()})]


WAYS: dict[str, Way] = {
    "jit.trace": lambda model, x: torch.jit.trace(model, x, check_trace=False)(x),
    "compile": _compiled,
    "export": _exported,
    "ONNX": _by_onnxruntime,
}

_STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
_BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "detectron2 ViT": lambda: ViT(64, embed_dim=96, depth=2, num_heads=4, window_size=2, use_rel_pos=True),
    "detectron2 MViT": lambda: MViT(img_size=64, embed_dim=32, depth=4, last_block_indexes=(0, 1, 2, 3)),
    "detectron2 SwinTransformer": lambda: SwinTransformer(embed_dim=24, **_STAGES),
}
BACKBONES = {name: Entry(name, build, partial(noise_image, 64)) for name, build in _BACKBONES.items()}
