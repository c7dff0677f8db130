"""Prune every architecture of the zoo by half of its MACs, each in a process of its own, and tabulate."""

import argparse
import dataclasses
import fnmatch
import json
import logging
import subprocess
import sys

import torch

from d2prune.benchmarks import ENTRIES, Row, markdown, measure_entry
from d2prune.files import atomic_write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="shell-style, over names")
    parser.add_argument("--output", metavar="FILE", help="a Markdown file to write the table to")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one architecture")
    parser.add_argument("--no-peer", action="store_true", help="leave torch-pruning out")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one or args.peer:
        logging.disable(logging.WARNING)
        torch.set_num_threads(1)
        print(
            json.dumps(
                _peer(args.peer) if args.peer else dataclasses.asdict(measure_entry(ENTRIES[args.one]))
            )
        )
        return
    rows = []
    for name in fnmatch.filter(ENTRIES, args.only):
        answer = _child("--one", name, args.timeout)
        row = Row(**answer) if isinstance(answer, dict) else Row(name, refused=str(answer))
        row.peer = "" if args.no_peer else str(_child("--peer", name, args.timeout))
        rows.append(row)
        print(markdown([row]).splitlines()[2], flush=True)
    print(f"{sum(row.green for row in rows)} of {len(rows)} are pruned, exact and work in every way")
    if args.output:
        with atomic_write(args.output) as file:
            file.write(markdown(rows))


def _peer(name: str) -> str:
    from d2prune.benchmarks.peer import try_torch_pruning

    return try_torch_pruning(ENTRIES[name])


def _child(option: str, name: str, timeout: int) -> object:
    """The answer of a process of its own: memory is counted by process, and some tracers never end."""
    command = [sys.executable, "-W", "ignore", __file__, option, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"no result in {timeout} s"
    if done.returncode:
        return (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1][:120]
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
