"""The whole pipeline on the embedded digits: prune the shipped baseline, prove, fine-tune, export."""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from d2prune.report import stage_table, verdict
from d2prune.report.record import read_report_json

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/BlendMask/digits_R_18.yaml"
FINETUNE = "configs/BlendMask/digits_R_18_finetune.yaml"
BASELINE = "configs/BlendMask/digits_R_18.pth"


def steps(out: str, control: bool) -> list[tuple[str, str]]:
    """What is done, and the command that does it: each works on its own, too."""
    train, pruned = "tools/train_net.py --config-file", f"{out}/model_pruned.pth"
    tasks = [
        ("make the data", "tools/make_digits.py --output datasets/digits"),
        ("prune, prove, evaluate",
         f"{train} {CONFIG} MODEL.PRUNE True MODEL.WEIGHTS {BASELINE} OUTPUT_DIR {out}"),
        ("fine-tune",
         f"{train} {FINETUNE} MODEL.FINETUNE True MODEL.WEIGHTS {pruned} OUTPUT_DIR {out}"),
        ("export",
         f"tools/export_model.py --config-file {out}/pruned.yaml --format onnx --output {out}/onnx"),
    ]  # fmt: skip
    if control:
        train_on = "tools/train_control.py --config-file"
        tasks.insert(3, ("train the unpruned baseline for as long, as the control",
                         f"{train_on} {FINETUNE} --report {out} SOLVER.BASE_LR 0.001 "
                         f"MODEL.WEIGHTS {BASELINE} OUTPUT_DIR {out}/control"))  # fmt: skip
    return tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="output/demo", help="its old content is removed")
    parser.add_argument("--control", action="store_true", help="train the control, too (+9 min)")
    args = parser.parse_args()
    os.chdir(ROOT)
    shutil.rmtree(args.output, ignore_errors=True)
    for number, (what, command) in enumerate(steps(args.output, args.control), start=1):
        print(f"\n=== {number}. {what}\n$ python {command}", flush=True)
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-W", "ignore", *shlex.split(command)], check=False)
        if done.returncode:
            sys.exit(f"demo: step {number} ({what}) failed")
        print(f"=== {what}: {time.monotonic() - start:.0f} s", flush=True)
    report = read_report_json(args.output)
    assert report is not None, "the first step writes it"
    print(f"\n{stage_table(report)}\n\n{verdict(report)}")
    print(f"\nReport: {args.output}/pruning_report.html   Model: {args.output}/pruned.yaml")


if __name__ == "__main__":
    main()
