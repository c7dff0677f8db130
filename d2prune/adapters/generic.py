"""The adapter of models without a registered one, which prunes inside their backbone and dense heads."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from d2prune.adapters.base import Adapter, flatten
from d2prune.adapters.images import PROOF_SIZE, padded, random_images
from d2prune.core.copies import in_float32
from d2prune.core.cut.arithmetic import in_float64
from d2prune.errors import PruneError

logger = logging.getLogger(__name__)
OBSERVED = 2
"""Images in the batch that a model is observed on; tensors with as many rows are taken as dense."""


class GenericAdapter(Adapter):
    """An adapter that runs a model's own ``forward``, and prunes inside its *parts*.

    Parts are the largest modules that map tensors to tensors with one row per image, such as a backbone
    or a dense head. A part's outputs stay whole, so whatever reads them, in training too, still fits.
    """

    calls: Mapping[str, int]
    """How often each part runs, by its dotted path."""

    def __init__(self, run: Callable[[nn.Module, Tensor], object], calls: Mapping[str, int]) -> None:
        self._run = run
        self.calls = calls

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """See :meth:`Adapter.dense`.

        The run ends with the last part. What comes after it is not counted either, because how often it
        runs depends on the image.
        """
        found: dict[str, Tensor] = {}
        seen: Counter[str] = Counter()

        def note(path: str, given: Any, output: Any) -> None:
            seen[path] += 1
            name = path if seen[path] == 1 else f"{path}/{seen[path]}"
            found.update({n: t.clone() for n, t in flatten(output, name).items()})
            if all(seen[part] >= count for part, count in self.calls.items()):
                raise _AllSeenError

        with _hooked({path: model.get_submodule(path) for path in self.calls}, note):
            try:
                self._run(model, images)
            except _AllSeenError:
                pass
        return found


class _AllSeenError(Exception):
    """The signal that ends a run after the last part, before any thresholds, sorting and NMS."""


def generic_adapter(model: nn.Module) -> GenericAdapter:
    """Find the parts of ``model`` by observing a run of a copy; they must run in float64, too, for proofs.

    The copy is called with a list of dicts, as Detectron2 calls models; if that fails, its backbone alone.

    Raises:
        PruneError: if neither runs, or no parts are found.
    """
    name, failed = type(model).__name__, ""
    has_backbone = isinstance(getattr(model, "backbone", None), nn.Module)
    for run in (_run_whole, _run_backbone) if has_backbone else (_run_whole,):
        try:
            adapter = GenericAdapter(run, _observe(in_float32(model), run))
            with torch.no_grad(), in_float64():
                adapter.dense(*_ready(copy.deepcopy(model).double().eval()), training_branches=True)
        except Exception as error:  # a model may raise anything when called in a way it does not know
            failed = failed or f"{type(error).__name__}: {error}"[:200]
            continue
        if adapter.calls:
            logger.warning(
                "no adapter for %s: only the inside of %s is pruned, and what comes out of it stays whole%s. "
                "An adapter (@d2prune.register_adapter) would say more",
                name, ", ".join(adapter.calls),
                f" (its own forward does not run on images alone: {failed})" if failed else "",
            )  # fmt: skip
            return adapter
    raise PruneError(
        f"no adapter for {name}: pass example_inputs= (and forward_fn= where model(example_inputs) is not "
        "what to run), or register one with @d2prune.register_adapter; as a model of Detectron2's kind it "
        f"does not run either ({failed or 'no part of it makes tensors of tensors'})"
    )


def _run_whole(model: nn.Module, images: Tensor) -> object:
    height, width = images.shape[-2:]
    return model([{"image": image, "height": height, "width": width} for image in images])


def _run_backbone(model: nn.Module, images: Tensor) -> object:
    tells = hasattr(model, "normalizer") or (hasattr(model, "pixel_mean") and hasattr(model, "pixel_std"))
    return model.backbone(padded(model, images) if tells else images)


def _ready(model: nn.Module) -> tuple[nn.Module, Tensor]:
    """Return the model, and the images that it is observed on."""
    parameter = next(model.parameters())
    return model, random_images(PROOF_SIZE, OBSERVED).to(parameter.device, parameter.dtype)


def _observe(model: nn.Module, run: Callable[[nn.Module, Tensor], object]) -> dict[str, int]:
    """Return how often each part of a model is called, in the order in which the parts first end."""
    dense: dict[str, bool] = {}
    calls: Counter[str] = Counter()

    def note(path: str, given: Any, output: Any) -> None:
        calls[path] += 1
        dense[path] = dense.get(path, True) and _reads_tensors(given) and _gives_maps(output)

    with torch.no_grad(), _hooked({path: module for path, module in model.named_modules() if path}, note):
        run(*_ready(model))
    held = {
        path for path, ok in dense.items() if ok and any(True for _ in model.get_submodule(path).parameters())
    }
    return {path: calls[path] for path in dense if path in held and not any(o in held for o in _owners(path))}


def _owners(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _reads_tensors(given: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(given))


def _gives_maps(output: Any) -> bool:
    leaves = [leaf for leaf in tree_leaves(output) if leaf is not None]
    return bool(leaves) and all(
        isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 1 and len(leaf) == OBSERVED
        for leaf in leaves
    )


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], note: Callable[[str, Any, Any], None]) -> Iterator[None]:
    """Call ``note(path, inputs, output)`` after every call of these modules while the context lasts."""

    def hook(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: note(path, (args, kwargs), output)

    hooks = [m.register_forward_hook(hook(path), with_kwargs=True) for path, m in modules.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
