"""Put d2prune into a fork of Detectron2 or AdelaiDet, or take it out again.

    python tools/patch_fork.py check --patch patches/adelaidet.yaml --root ../AdelaiDet

--root is a checkout, or the folder of an installed package. `diff` prints what `apply` writes.
"""

import argparse
import sys

from d2prune.errors import PruneError
from d2prune.patching import apply, check, diff, read_edits, revert


def main() -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("command", choices=["check", "apply", "revert", "diff"])
    parser.add_argument("--patch", nargs="+", required=True, help="files of patches/")
    parser.add_argument("--root", required=True, help="the fork")
    args = parser.parse_args()
    edits = [edit for path in args.patch for edit in read_edits(path)]
    if args.command == "check":
        findings = check(edits, args.root)
        print(*findings, sep="\n")
        return 0 if all(finding.state for finding in findings) else 1
    if args.command == "diff":
        print(diff(edits, args.root), end="")
        return 0
    changed = (apply if args.command == "apply" else revert)(edits, args.root)
    nothing = {"apply": "already applied", "revert": "nothing to revert"}[args.command]
    print("\n".join(map(str, changed)) or nothing)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PruneError as error:
        sys.exit(f"nothing was written: {error}")
