"""What a prune costs in accuracy: trained models, methods, amounts and seeds, as one table.

family       what a row needs of a trained model
detectors    families of Detectron2's configs
classifiers  a ViT and a ResNet on the digits
methods      name -> how channels are chosen and repaired
trial        one family, method, amount and seed -> what was kept
table        trials -> Markdown
session      many trials, kept in a folder
"""

from __future__ import annotations

from d2prune.benchmarks.quality.classifiers import CLASSIFIERS, Classifier
from d2prune.benchmarks.quality.detectors import Detector
from d2prune.benchmarks.quality.family import Family
from d2prune.benchmarks.quality.methods import METHODS
from d2prune.benchmarks.quality.session import session
from d2prune.benchmarks.quality.table import markdown
from d2prune.benchmarks.quality.trial import Trial, baseline, try_method

__all__ = [
    "CLASSIFIERS", "METHODS", "Classifier", "Detector", "Family", "Trial", "baseline", "markdown",
    "session", "try_method",
]  # fmt: skip
