"""Plan, cut, prove: knows torch and torch-pruning, no Detectron2, and takes dataclasses, never a config."""
