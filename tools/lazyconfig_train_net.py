"""Train, prune, fine-tune or evaluate a model of a LazyConfig: Detectron2's own arguments, and prune.*."""

import sys

from detectron2.engine import default_argument_parser, launch

import d2prune
from d2prune.engine.lazy import main

if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE",
        help="a module that registers your data sets or models; may be given several times",
    )  # fmt: skip
    args = parser.parse_args()
    ranks = (args.num_gpus, args.num_machines, args.machine_rank)
    try:
        launch(main, *ranks, dist_url=args.dist_url, args=(args,))
    except d2prune.PruneError as error:
        sys.exit(f"lazyconfig_train_net: {error}")
