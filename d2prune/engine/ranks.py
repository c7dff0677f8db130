"""Several processes: Detectron2's launch or torchrun starts them; on CPUs they talk by gloo."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from detectron2.engine import defaults, launch
from detectron2.utils import comm
from torch import distributed

from d2prune.errors import PruneError


def run_on_ranks(main: Callable[[Namespace], object], args: Namespace) -> None:
    """Run ``main(args)`` on every rank: in torchrun's group, or in one of ``--num-gpus`` processes.

    Args:
        main: what to run; a function of a module, so that it can be sent to other processes.
        args: of Detectron2's parser.

    Raises:
        PruneError: if torchrun and ``--num-gpus`` are both asked to start processes.
    """
    if not distributed.is_torchelastic_launched():
        ranks = (args.num_gpus, args.num_machines, args.machine_rank)
        launch(main, *ranks, dist_url=args.dist_url, args=(args,))
        return
    if args.num_gpus > 1 or args.num_machines > 1:
        raise PruneError(
            f"torchrun starts the processes, and --num-gpus is {args.num_gpus}, --num-machines "
            f"{args.num_machines}; expected neither (torchrun --nproc-per-node N --nnodes M ...)"
        )
    _join_group()
    main(args)
    distributed.destroy_process_group()  # after an error torchrun ends the others


def _join_group() -> None:
    """Join the group that torchrun's environment describes."""
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if gpus else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def check_group() -> None:
    """Raise PruneError if this is one of several processes that know nothing of each other.

    Each would take itself for the only one, and write the same files.
    """
    size = os.environ.get("WORLD_SIZE", "")
    if size.isdigit() and int(size) > 1 and not distributed.is_initialized():
        raise PruneError(
            f"WORLD_SIZE is {size} but there is no process group: start with torchrun what joins it "
            "(tools/train_net.py; your own main by d2prune.engine.command_line.run_command), or with "
            "--num-gpus"
        )


@contextmanager
def alone() -> Iterator[None]:
    """While this is open, this rank takes itself for the only one.

    Losses that are averaged over ranks would else wait for the others, which do other work meanwhile.
    """
    given = distributed.is_initialized
    distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        distributed.is_initialized = given


def ddp_arguments(device: str) -> dict[str, Any]:
    """Return what DistributedDataParallel needs to be told of ``device``, for ``create_ddp_model``.

    Unless told otherwise Detectron2 names the rank's number as a device, which a model on a CPU has not.
    """
    return {"device_ids": None} if torch.device(device).type == "cpu" else {}


@contextmanager
def ddp_on(device: str) -> Iterator[None]:
    """While this is open, DefaultTrainer can wrap a model on ``device``, which may be a CPU."""
    given = defaults.create_ddp_model
    defaults.create_ddp_model = partial(given, **ddp_arguments(device))
    try:
        yield
    finally:
        defaults.create_ddp_model = given
