"""Export a model, pruned or not, and show that the exported one detects the same."""

from __future__ import annotations

import argparse
import sys

from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger

import d2prune.data  # noqa: F401  registers the embedded data set
from d2prune.checkpoint import build_from_cfg
from d2prune.config import get_cfg, read_config
from d2prune.errors import PruneError
from d2prune.export import FORMATS, average_precisions, exporter
from d2prune.export.settings import export_size
from d2prune.report import real_inputs

MINI = "digits_val_mini"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="F")
    parser.add_argument("--format", default="onnx", help=f"one of: {', '.join(FORMATS)}")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--images", type=int, default=4, metavar="N",
                        help="images of DATASETS.TEST to compare detections on")  # fmt: skip
    parser.add_argument("--eval", metavar="DATASET",
                        help=f"compare AP on it; default: {MINI} for the digits")  # fmt: skip
    parser.add_argument("--import", dest="packages", action="append", default=[],
                        metavar="PACKAGE", help="registers your data sets and models")  # fmt: skip
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return parser.parse_args(argv)


def run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Export, then compare AP."""
    export = exporter(args.format)
    model = build_from_cfg(cfg)
    batch = [item for items in real_inputs(cfg, args.images) for item in items]
    result = export(model, args.output, export_size(model, cfg), cfg, batch)
    print(f"{result.path}: {result.parity}")
    dataset = args.eval or (MINI if cfg.DATASETS.TEST[0].startswith("digits_") else None)
    if dataset is None:
        print("AP not compared: name a data set with --eval")
        return
    rows = average_precisions({"eager": model, args.format: result.predictor}, cfg, dataset)
    for name, scores in rows.items():
        print(f"{dataset} {name:>8}: " + ", ".join(f"{k} AP {v:.2f}" for k, v in scores.items()))


def main(argv: list[str] | None = None) -> int:
    """Build the model that the config and its weights describe, and export it."""
    args = parse_args(argv)
    setup_logger(name="d2prune")
    try:
        run(args, read_config(get_cfg(), args.config_file, args.opts, args.packages))
    except PruneError as error:
        print(f"export_model: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
