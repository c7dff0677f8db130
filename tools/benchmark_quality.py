"""Prune trained models by several methods, amounts and seeds, and tabulate what each costs in accuracy."""

import argparse
import logging
import sys
from pathlib import Path

import torch
from train_net import Trainer

import d2prune.data  # noqa: F401  registers the embedded data set
from d2prune.benchmarks.quality import CLASSIFIERS, METHODS, Classifier, Detector, Family, markdown, session
from d2prune.errors import PruneError

ROOT = Path(__file__).resolve().parents[1] / "configs"
BLENDMASK = str(ROOT / "BlendMask/digits_R_18.pth")
DETECTORS = [
    Detector("BlendMask", str(ROOT / "BlendMask/digits_R_18.yaml"), Trainer, BLENDMASK, rate=4.0),
    Detector("RetinaNet", str(ROOT / "Detectron2/digits_retinanet.yaml"), Trainer),
    Detector("Mask R-CNN", str(ROOT / "Detectron2/digits_mask_rcnn.yaml"), Trainer),
    Detector("LSKNet", str(ROOT / "LSKNet/digits_faster_rcnn_lsk.yaml"), Trainer),
]  # BlendMask's rate was chosen on scenes of another seed


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    logging.getLogger("d2prune").setLevel(logging.WARNING)
    families: list[Family] = [*DETECTORS, *(Classifier(*named) for named in CLASSIFIERS.items())]
    chosen = [family for family in families if family.name in args.family]
    for trial in session(args.output, chosen, args.method, args.amounts, args.seeds, args.iterations):
        print(markdown([trial]).splitlines()[2], flush=True)
    print(f"All trials: {args.output}/quality.md")


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    names = [*(d.name for d in DETECTORS), *CLASSIFIERS]
    add("--family", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    add(
        "--method", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help=", ".join(METHODS)
    )
    add("--amounts", type=float, nargs="+", default=[0.3, 0.5, 0.65], help="fractions of the MACs")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of calibration images and training")
    add("--iterations", type=int, default=0, help="of training after each prune; 0: none")
    add("--output", type=Path, default=Path("output/quality"), help="where trials are kept, and the table")
    add("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except PruneError as error:
        sys.exit(f"benchmark_quality: {error}")
