"""Measure what a model's layers take on this machine, for prunes that are planned elsewhere.

    python tools/measure_latency.py --config-file F --output table.json [KEY VALUE ...]

on the device that the model is to be fast on; then, where the data and the GPUs are,

    python tools/train_net.py --config-file F MODEL.PRUNE True MODEL.PRUNING.TARGET latency \\
        MODEL.PRUNING.LATENCY_TABLE table.json ...
"""

import argparse
import logging
import sys

import torch

import d2prune.data  # noqa: F401  registers the embedded data set
from d2prune.checkpoint import build_from_cfg
from d2prune.config import get_cfg, read_config
from d2prune.engine.settings import trace_input_from_cfg
from d2prune.errors import PruneError
from d2prune.pruning.latency import table_for
from d2prune.pruning.measuring import find_groups


def main(argv: list[str] | None = None) -> int:
    """Measure, or say why not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument(
        "--output", required=True, metavar="JSON", help="the table; one that is there is checked"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    try:
        cfg = read_config(get_cfg(), args.config_file, args.opts, args.imports)
        model = build_from_cfg(cfg)
        trace_input = trace_input_from_cfg(cfg, model)
        table = table_for(model, trace_input, find_groups(model, trace_input), args.output)
    except PruneError as error:
        print(f"measure_latency: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {table.whole:.1f} ms, {', '.join(table.measured_on.values())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
