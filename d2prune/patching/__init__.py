"""Insert-only patches for forks, anchored at names of classes and functions, never at source lines."""

from d2prune.patching.checkout import Finding, apply, check, diff, revert
from d2prune.patching.edits import Edit, read_edits

__all__ = ["Edit", "Finding", "apply", "check", "diff", "read_edits", "revert"]
