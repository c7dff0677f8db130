"""The base class and the registry of adapters, which know what is special about a meta-architecture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from d2prune.errors import PruneError
from d2prune.optional import HAS_DETECTRON2

Class = TypeVar("Class", bound=type)


class Adapter:
    """A way to run a model densely: images in, tensors out, no boxes, no sorting, no thresholds.

    Subclass it for a meta-architecture and decorate it with ``@register_adapter(MyMetaArch)``; only
    :meth:`dense` must be written.
    """

    old_names: ClassVar[Mapping[str, str]] = {}
    """Parts of parameter names in older checkpoints, and their present names."""

    auxiliary_losses: ClassVar[Collection[str]] = ()
    """Losses of branches that only run in training, which say nothing about what inference needs."""

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """Return, by name, the tensors that the model computes from images before any discrete choice.

        Args:
            model: an instance of the registered class, in eval mode, on any device, in any float dtype.
            images: (N, 3, H, W) raw pixels in the model's own channel order, 0..255.
            training_branches: whether to include branches that only run in training. They are left
                out when costs are counted, and must be included when a graph is traced: a branch that
                is not traced is not pruned, and training breaks.
        """
        raise NotImplementedError

    def training_only(self, model: nn.Module) -> Mapping[str, str]:
        """Return layers that only some training settings build, each with the layer whose output it reads.

        Such layers may be absent, or new, when a pruned checkpoint is loaded under another setting.
        """
        return {}

    def losses(self, model: nn.Module, batch: Any) -> Mapping[str, Tensor] | None:
        """Return the losses of a labelled batch, with norms as in inference; None if it has no labels.

        The default calls a model in training mode as Detectron2 does: list[dict] in, dict of losses out.
        """
        if not (HAS_DETECTRON2 and isinstance(batch, list) and isinstance(batch[0], Mapping)):
            return None
        from d2prune.adapters.training import training_losses

        return training_losses(model, batch, self.auxiliary_losses)

    def after_resize(self, model: nn.Module) -> None:
        """Update integers that repeat a width; the default updates those of backbones and FPNs."""
        if HAS_DETECTRON2:  # only its backbones repeat their widths
            from d2prune.adapters.shapes import refresh_shapes

            refresh_shapes(model)


_ADAPTERS: dict[type | str, Adapter] = {}


def register_adapter(*classes: type | str) -> Callable[[Class], Class]:
    """Return a class decorator that registers an adapter for model classes and their subclasses.

    A class may be given as its dotted path, if importing it has a cost or may fail. The latest
    registration of a class wins, so that a user can replace an adapter.
    """

    def add(adapter: Class) -> Class:
        for cls in classes:
            _ADAPTERS[cls] = adapter()
        return adapter

    return add


def find_adapter(model: nn.Module) -> Adapter | None:
    """Return the adapter of the nearest class in the model's method resolution order; None without one."""
    keys = (key for cls in type(model).__mro__ for key in (cls, f"{cls.__module__}.{cls.__qualname__}"))
    return next((_ADAPTERS[key] for key in keys if key in _ADAPTERS), None)


def unknown(part: nn.Module | None, role: str, expected: str) -> PruneError:
    """Return the error to raise for a model whose ``part`` its adapter can't run."""
    return PruneError(
        f"no adapter knows the {role} {type(part).__name__}; expected {expected}: pass example_inputs= and "
        "forward_fn=, or register an adapter for the model"
    )


def flatten(value: Any, name: str = "output") -> dict[str, Tensor]:
    """Return the float tensors of a nested result by name: "output", "output.0", "output.boxes", ..."""
    if isinstance(value, Tensor):
        return {name: value} if value.is_floating_point() else {}
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, (tuple, list)):
        items = [(str(i), inner) for i, inner in enumerate(value)]
    else:
        return {}
    return {n: t for key, inner in items for n, t in flatten(inner, f"{name}.{key}").items()}
