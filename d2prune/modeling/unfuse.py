"""Taking fused convolutions and frozen norms apart for tracers, and undoing it afterwards.

``detectron2.layers.Conv2d`` runs its norm and activation inside its own forward, so a tracer that
asks "which module made this tensor" loses the norm. FrozenBatchNorm2d is arithmetic on buffers, so
autograd does not see it at all. Both are changed in place, keeping every module's identity: FPN and
others hold plain lists of their convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

import torch
from torch import Tensor, nn

from d2prune.optional import HAS_DETECTRON2

_WIDTHS = ("in_channels", "out_channels", "groups")
_FUSED = import_module("detectron2.layers").Conv2d.forward if HAS_DETECTRON2 else None
_STATISTICS = {"weight", "bias", "running_mean", "running_var"}


class _Unfused(nn.Module):
    """A fused convolution while it is taken apart, with the children ``conv`` and ``norm``."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


@contextmanager
def unfused(model: nn.Module) -> Iterator[dict[nn.Module, str]]:
    """Take ``model`` apart, in place, for the duration of the context.

    Yields:
        The path of every module as the model itself names it: of a fused convolution ``x``, the
        plain convolution is ``x`` and its norm ``x.norm``. Widths changed inside the context
        (by torch-pruning, say) are kept when it ends.
    """
    names = {module: name for name, module in model.named_modules()}
    undo: list[Callable[[], None]] = []
    try:
        for module, name in list(names.items()):
            if type(module).forward is _FUSED:
                names[_split(module, undo)] = name
                del names[module]
            elif is_frozen_norm(module):
                _thaw(module, undo)
        yield names
    finally:
        for step in reversed(undo):
            step()


def is_frozen_norm(module: nn.Module) -> bool:
    """Return whether ``module`` is a FrozenBatchNorm2d of any library: a BatchNorm made of buffers."""
    return set(module._buffers) >= _STATISTICS and not isinstance(module, nn.modules.batchnorm._BatchNorm)


def _split(module: nn.Module, undo: list[Callable[[], None]]) -> nn.Conv2d:
    """Make ``module`` an :class:`_Unfused` around a plain convolution, which is returned."""
    kind, children, parameters = type(module), module._modules, module._parameters
    plain = nn.Conv2d.__new__(nn.Conv2d)
    nn.Module.__init__(plain)
    own = vars(plain)
    own.update({k: v for k, v in vars(module).items() if k not in own and k not in ("norm", "activation")})
    own["training"] = module.training
    plain._parameters = parameters
    vars(module)["_parameters"] = {}
    vars(module)["_modules"] = {"conv": plain, **children}
    module.__class__ = _Unfused

    def join() -> None:
        module.__class__ = kind
        vars(module).update(_modules=children, _parameters=parameters)
        for name in _WIDTHS:
            setattr(module, name, getattr(plain, name))

    undo.append(join)
    return plain


def _thaw(module: nn.Module, undo: list[Callable[[], None]]) -> None:
    """Make a frozen norm a BatchNorm2d that computes the same in eval mode."""
    kind, attributes = type(module), dict(vars(module))
    buffers = dict(module._buffers)
    parameters = {n: nn.Parameter(buffers.pop(n)) for n in ("weight", "bias")}
    vars(module).update(
        _buffers={"num_batches_tracked": None, **buffers},
        _parameters=parameters,
        num_features=parameters["weight"].shape[0],
        momentum=0.1,
        affine=True,
        track_running_stats=True,
    )
    module.__class__ = nn.BatchNorm2d

    def freeze() -> None:
        now = {**module._buffers, **{n: p.detach() for n, p in module._parameters.items()}}
        width = module.num_features
        vars(module).clear()
        vars(module).update(attributes)
        module.__class__ = kind
        module._buffers = {n: now.get(n) for n in attributes["_buffers"]}
        if "num_features" in attributes:
            module.num_features = width

    undo.append(freeze)


def thaw(model: nn.Module) -> list[str]:
    """Make every frozen norm a trainable BatchNorm2d, for good and in place.

    Returns:
        The paths of the norms that were frozen. State-dict keys gain ``num_batches_tracked``.
    """
    thawed = []
    for name, module in model.named_modules():
        if is_frozen_norm(module):
            _thaw(module, [])
            module._buffers["num_batches_tracked"] = torch.zeros(
                (), dtype=torch.long, device=module.running_mean.device
            )
            thawed.append(name)
    return thawed
