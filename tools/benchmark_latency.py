"""What prunes for latency come to at real widths: predicted, measured, and against the MACs they save.

Weights are random, so no data is needed: what matters here is how many channels go where. F is a file, or a
name of Detectron2's model zoo: COCO-Detection/retinanet_R_50_FPN_1x.yaml.
"""

import argparse
import os
import sys

import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model

import d2prune
from d2prune.config import get_cfg, read_config
from d2prune.pruning.clock import device_name
from d2prune.report.table import aligned

HEADS = ("AMOUNT", "ALLOCATION", "MACs", "predicted", "measured", "ms", "time saved / MACs saved")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--config-file", required=True, metavar="F")
    add("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    add("--amounts", type=float, nargs="+", default=(0.3, 0.5, 0.7))
    add("--allocations", nargs="+", default=("per_cost", "global", "uniform"))
    add("--threads", type=int, default=torch.get_num_threads())
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    known = os.path.isfile(args.config_file)
    file = args.config_file if known else model_zoo.get_config_file(args.config_file)
    model = build_model(read_config(get_cfg(), file, ["MODEL.WEIGHTS", "", *args.opts], [])).eval()
    rows, before = [], 0.0
    for allocation in args.allocations:
        for amount in args.amounts:
            result = d2prune.prune(
                model, amount, target="latency", allocation=allocation, criterion="magnitude",
                round_to=8, max_ratio=0.9, input_size=tuple(args.size), verify=False,
            )  # fmt: skip
            macs, timed = result.after.macs / result.before.macs, result.latency
            assert timed is not None, "it was measured here"
            times = [f"x{macs:.3f}", f"x{timed.predicted:.3f}", f"x{timed.ratio:.3f}"]
            gain, before = (1 - timed.ratio) / (1 - macs), timed.before
            rows.append([f"-{amount:.0%}", allocation, *times, f"{timed.after:.0f}", f"{gain:.2f}"])
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    where = f"{args.threads} threads of {device_name(next(model.parameters()).device)}"
    print(f"{args.config_file} at {args.size}, {where}, torch {torch.__version__}")
    print(f"unpruned {before:.0f} ms\n{aligned([HEADS, *rows])}")


if __name__ == "__main__":
    main()
