"""Compare models' latency on real images, taken in turns; the first config is the baseline."""

from __future__ import annotations

import argparse
import sys

from detectron2.config import CfgNode

import d2prune.data  # noqa: F401  registers the embedded data set
from d2prune.checkpoint import build_from_cfg
from d2prune.config import get_cfg, read_config
from d2prune.errors import PruneError
from d2prune.report import environment, latency, latency_table, real_inputs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--config-file", action="append", required=True, metavar="F", help="one per model")
    add("--weights", action="append", metavar="PTH", help="MODEL.WEIGHTS of each file in turn")
    add("--images", type=int, default=10, help="how many of the first file's DATASETS.TEST")
    add("--runs", type=int, default=50, help="timed runs of each model")
    add("--warmup", type=int, default=10, help="runs before those")
    add("--dense", action="store_true", help="the network alone, without decoding")
    add("--import", dest="packages", action="append", default=[], metavar="PACKAGE",
        help="import this first: it registers your data sets and models")  # fmt: skip
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="for every config")
    return parser.parse_args(argv)


def read_configs(args: argparse.Namespace) -> dict[str, CfgNode]:
    """One frozen config per file, by a name that tells them apart."""
    weights = args.weights or [None] * len(args.config_file)
    if len(weights) != len(args.config_file):
        raise PruneError(f"{len(weights)} --weights for {len(args.config_file)} --config-file")
    configs = {}
    for number, (file, path) in enumerate(zip(args.config_file, weights, strict=True), start=1):
        opts = [*args.opts, *(["MODEL.WEIGHTS", path] if path else [])]
        configs[f"{number} {file}"] = read_config(get_cfg(), file, opts, args.packages)
    return configs


def main(argv: list[str] | None = None) -> int:
    """Time the models and print the table."""
    args = parse_args(argv)
    try:
        configs = read_configs(args)
        models = {name: build_from_cfg(cfg) for name, cfg in configs.items()}
        first = next(iter(configs))
        inputs = real_inputs(configs[first], args.images)
        times = latency(models, inputs, args.runs, args.warmup, dense=args.dense)
        print(latency_table(times, environment(next(models[first].parameters()).device)))
    except PruneError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
