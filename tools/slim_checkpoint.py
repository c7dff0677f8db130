"""Keep a checkpoint's weights only, in half precision: a fifth of the size, safe to load anywhere."""

import argparse

import torch

from d2prune.checkpoint import read_checkpoint
from d2prune.files import atomic_write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="a .pth file that a trainer wrote")
    parser.add_argument("output", help="the file to write: tensors only, under 'model'")
    args = parser.parse_args()
    weights = read_checkpoint(args.checkpoint)["model"]
    slim = {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
    with atomic_write(args.output, "wb") as file:
        torch.save({"model": slim}, file)
    print(f"{args.output}: {len(slim)} tensors, {sum(t.numel() for t in slim.values()) / 1e6:.2f} M values")


if __name__ == "__main__":
    main()
