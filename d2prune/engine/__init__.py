"""Pruning as Detectron2 users run it: trainer, modes, report; and the composition root ``prune``."""
