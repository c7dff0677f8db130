"""The proof of one prune: which inputs it uses, and which part of an inexact plan it can prove."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.cut.proof import inexact_in, verify
from d2prune.core.cut.spec import PruneSpec
from d2prune.core.types import Proof, PrunePlan
from d2prune.pruning.cutting import cut_by_plan


def changes_code(spec: PruneSpec) -> bool:
    """Return whether numbers in the model's code change, so that other input sizes must be compared, too."""
    return bool(spec.code) or bool(spec.corrections)


def proof_of(
    model: nn.Module, pruned: nn.Module, plan: PrunePlan, spec: PruneSpec, trace_input: TraceInput
) -> Proof:
    """Prove a prune by :func:`d2prune.core.cut.proof.verify`; of an inexact plan first the exact part alone.

    Raises:
        MisfitError: if the exact part differs.
    """
    inexact = inexact_in(plan)
    part = _exact_part(model, plan, trace_input) if inexact else ""
    forwards = trace_input.forwards(changes_code(spec))
    whole = verify(model, pruned, plan, spec, forwards, trace_input.varied)
    if not inexact:
        return whole
    reason = f"{inexact}; {part}; the inexact part changes outputs by up to {whole.error:.1e}"
    return dataclasses.replace(whole, reason=reason)


def _exact_part(model: nn.Module, plan: PrunePlan, trace_input: TraceInput) -> str:
    pairs = list(zip(plan.groups, plan.kept, strict=True))
    exact = dataclasses.replace(plan, kept=tuple(np.arange(g.units) if g.inexact else k for g, k in pairs))
    if all(len(kept) == g.units for g, kept in zip(exact.groups, exact.kept, strict=True)):
        return "nothing else was removed"
    spec, smaller = cut_by_plan(copy.deepcopy(model).double(), exact, trace_input)
    proof = proof_of(model, smaller, exact, spec, trace_input)
    return (
        f"the exact part was proved (error {proof.error:.1e})"
        if proof.exact
        else f"of the rest: {proof.reason}"
    )
