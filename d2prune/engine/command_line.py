"""What the training tools' command lines share: Detectron2's arguments, --import, ranks, clear errors."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from d2prune.engine.ranks import run_on_ranks
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
    try:
        run_on_ranks(partial(_in_one_line, main), args)
    except PruneError as error:
        _leave(error)
    except ProcessExitedException:  # a rank that --num-gpus started has said why
        sys.exit(1)


def _in_one_line(main: Callable[[Namespace], object], args: Namespace) -> None:
    try:
        main(args)
    except PruneError as error:
        _leave(error)


def _leave(error: PruneError) -> NoReturn:
    sys.exit(f"{Path(sys.argv[0]).stem}: {error}" if comm.is_main_process() else 1)
