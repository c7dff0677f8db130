"""What the training tools' command lines share: Detectron2's arguments, --import, ranks, clear errors."""

from __future__ import annotations

import errno
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
from d2prune.files import unwritten

_WRITING = (
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG,
    errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS,
)  # fmt: skip
"""What the system says where OUTPUT_DIR can't be written."""


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
    except OSError as error:
        if error.errno not in _WRITING:
            raise
        _leave(unwritten(error.filename, error))


def _leave(error: PruneError) -> NoReturn:
    # A data loader's worker sends its traceback as the message, the error's own line at its end.
    text = str(error).rpartition("Error: ")[2] if "Original Traceback" in str(error) else str(error)
    sys.exit(f"{Path(sys.argv[0]).stem}: {text.strip()}" if comm.is_main_process() else 1)
