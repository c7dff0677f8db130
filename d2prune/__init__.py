"""Structured (channel) pruning for Detectron2 and AdelaiDet: train, prune, prove, fine-tune, export."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("d2prune")  # setup.py holds it
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"
