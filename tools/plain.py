"""Prune transformers of several libraries and see whether they can still be traced, compiled and exported."""

import argparse
import fnmatch
import logging

import torch

from d2prune.benchmarks import ENTRIES
from d2prune.benchmarks.compilers import BACKBONES, HEAD, measure_plainness
from d2prune.errors import PruneError
from d2prune.files import atomic_write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="shell-style, over the zoo's names")
    parser.add_argument("--output", metavar="FILE", help="a Markdown file to write the table to")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    lines = [HEAD, tuple("---" for _ in HEAD)]
    entries = {**{name: entry for name, entry in ENTRIES.items() if entry.inputs}, **BACKBONES}
    for name in fnmatch.filter(entries, args.only):
        try:
            lines.append(measure_plainness(entries[name]).cells())
        except PruneError as error:
            lines.append((name, f"refused: {error}", *[""] * (len(HEAD) - 2)))
        print(" | ".join(lines[-1]), flush=True)
    if args.output:
        with atomic_write(args.output) as file:
            file.write("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    main()
