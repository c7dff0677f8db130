"""Prune trained models by several methods, amounts and seeds, and tabulate what each costs in accuracy."""

import argparse
import dataclasses
import json
import logging
import sys
from functools import partial
from pathlib import Path

import torch
from train_net import Trainer

import d2prune.data  # noqa: F401  registers the embedded data set
from d2prune.benchmarks.quality import (
    CLASSIFIERS,
    METHODS,
    Classifier,
    Detector,
    Trial,
    baseline,
    markdown,
    try_method,
)
from d2prune.errors import PruneError

ROOT = Path(__file__).resolve().parents[1] / "configs"
CONFIGS = {
    "BlendMask": ("BlendMask/digits_R_18.yaml", str(ROOT / "BlendMask/digits_R_18.pth")),
    "RetinaNet": ("Detectron2/digits_retinanet.yaml", ""),
    "Mask R-CNN": ("Detectron2/digits_mask_rcnn.yaml", ""),
    "LSKNet": ("LSKNet/digits_faster_rcnn_lsk.yaml", ""),
}


def families():
    return [
        *(Detector(name, str(ROOT / file), Trainer, path) for name, (file, path) in CONFIGS.items()),
        *(Classifier(name, build) for name, build in CLASSIFIERS.items()),
    ]


def main():
    args = parse()
    logging.getLogger("d2prune").setLevel(logging.WARNING)
    path = args.output / "trials.jsonl"
    args.output.mkdir(parents=True, exist_ok=True)
    done = read(path)
    with path.open("a") as file:
        for job in jobs(args):
            if any(trial.key == job[1] for trial in done):
                continue
            trial = job[0]()
            done.append(trial)
            print(markdown([trial]).splitlines()[2], flush=True)
            file.write(json.dumps(dataclasses.asdict(trial)) + "\n")
            file.flush()
    (args.output / "quality.md").write_text(markdown(done))
    print(f"{args.output / 'quality.md'}: {len(done)} trials")


def jobs(args):
    """The work, in order: what does it, and the key of what comes out."""
    for family in families():
        if family.name not in args.family:
            continue
        for seed in args.seeds:
            if args.iterations or seed == args.seeds[0]:
                trial = Trial(family.name, "baseline", seed=seed, iterations=args.iterations)
                yield partial(baseline, family, seed, args.iterations), trial.key
            for amount in args.amounts:
                for method in args.method:
                    trial = Trial(family.name, method, amount, seed, iterations=args.iterations)
                    yield partial(try_method, family, method, amount, seed, args.iterations), trial.key


def read(path):
    """The trials of an earlier run, which are not done again."""
    return [Trial(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    names = [*CONFIGS, *CLASSIFIERS]
    add("--family", nargs="+", choices=names, default=names)
    add("--method", nargs="+", choices=list(METHODS), default=list(METHODS))
    add("--amounts", type=float, nargs="+", default=[0.3, 0.5, 0.65], help="fractions of the MACs")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of calibration images and training")
    add("--iterations", type=int, default=0, help="of training after each prune; 0: none")
    add("--output", type=Path, default=Path("output/quality"), help="where trials are kept, and the table")
    add("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    return args


if __name__ == "__main__":
    try:
        main()
    except PruneError as error:
        sys.exit(f"benchmark_quality: {error}")
