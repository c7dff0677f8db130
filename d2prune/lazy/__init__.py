"""Detectron2's LazyConfigs: read, built, pruned and trained."""
