"""One cell of the table: a family pruned by a method, evaluated at once and after training."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from d2prune.benchmarks.quality.family import Family
from d2prune.benchmarks.quality.methods import METHODS
from d2prune.benchmarks.row import peak_gb
from d2prune.core.types import Request
from d2prune.errors import PruneError
from d2prune.pruning import prune_model
from d2prune.pruning.budget import Scores
from d2prune.pruning.calibration import Data
from d2prune.report.record import BASELINE


@dataclass(frozen=True)
class Trial:
    """What came of one prune.

    Attributes:
        family, method: their names; of the unpruned model the method is "baseline".
        amount: fraction of the MACs asked for.
        seed: of the calibration images and of the training.
        way: criterion and allocation that were taken.
        reached: fraction removed.
        params: fraction of the parameters removed.
        cut: scores without any training.
        tuned: scores after ``iterations``; empty without training.
        iterations: steps of training after the prune.
        seconds: of the prune, with calibration and proof.
        peak_gb: resident memory of the process, at most, in 10^9 bytes.
        exact: whether the proofs passed.
        refused: why nothing was pruned; empty where it was.
    """

    family: str
    method: str
    amount: float = 0.0
    seed: int = 0
    way: str = ""
    reached: float = 0.0
    params: float = 0.0
    cut: Scores = field(default_factory=dict)
    tuned: Scores = field(default_factory=dict)
    iterations: int = 0
    seconds: float = 0.0
    peak_gb: float = 0.0
    exact: bool = True
    refused: str = ""

    @property
    def key(self) -> tuple[str, str, float, int, int]:
        """What tells it from others: two trials with one key are the same work."""
        return self.family, self.method, self.amount, self.seed, self.iterations


def baseline(family: Family, seed: int, iterations: int = 0) -> Trial:
    """Evaluate the unpruned model and, with ``iterations``, the control: the same, trained on."""
    model = family.load()
    cut = family.evaluate(model)
    tuned = family.evaluate(family.tune(model, iterations, seed, pruned=False)) if iterations else {}
    return Trial(family.name, BASELINE, seed=seed, cut=cut, tuned=tuned, iterations=iterations)


def try_method(family: Family, method: str, amount: float, seed: int, iterations: int = 0) -> Trial:
    """Prune a trained model, evaluate it, and with ``iterations`` train and evaluate it again."""
    how = METHODS[method]
    torch.manual_seed(seed)
    model = family.load()
    images, loss = family.batches(seed)
    request = Request(amount, criterion=how.criterion, allocation=how.allocation, round_to=family.round_to)
    start = time.perf_counter()
    try:
        result = prune_model(model, request, family.trace_input(model), data=Data(images, loss, how.repair))
    except PruneError as error:
        return Trial(family.name, method, amount, seed, iterations=iterations, refused=str(error))
    seconds = time.perf_counter() - start
    proofs = [result.proof, result.repair.proof if result.repair else result.proof]
    tuned = family.tune(result.model, iterations, seed) if iterations else None
    return Trial(
        family.name,
        method,
        amount,
        seed,
        way=f"{result.request.criterion}, {result.request.allocation}",
        reached=result.reached,
        params=1 - result.after.params / result.before.params,
        cut=family.evaluate(result.model),
        tuned=family.evaluate(tuned) if tuned is not None else {},
        iterations=iterations,
        seconds=seconds,
        peak_gb=peak_gb(),
        exact=all(proof is not None and proof.exact for proof in proofs),
    )
