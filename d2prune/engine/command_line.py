"""What the training tools' command lines share: Detectron2's arguments, --import, ranks, clear errors."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from detectron2.engine import default_argument_parser, launch

from d2prune.errors import PruneError


def run_command(main: Callable[[Namespace], object], parser: ArgumentParser | None = None) -> None:
    """Parse the command line and run ``main(args)`` on every rank; a PruneError is one line.

    Args:
        main: what to run.
        parser: Detectron2's default_argument_parser(), with a tool's own arguments added.
    """
    parser = parser or default_argument_parser()
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE",
        help="a module that registers your data sets or models; may be given several times",
    )  # fmt: skip
    args = parser.parse_args()
    ranks = (args.num_gpus, args.num_machines, args.machine_rank)
    try:
        launch(main, *ranks, dist_url=args.dist_url, args=(args,))
    except PruneError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
