"""Plan, cut, prove: knows torch, no Detectron2, and takes dataclasses, never a config."""
