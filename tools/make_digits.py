"""Make the embedded data set "digits": real handwritten digits on photographs, as COCO files."""

from __future__ import annotations

import argparse
import sys

from d2prune.data import default_root
from d2prune.data.digits import DigitsRecipe, make_digits
from d2prune.errors import PruneError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default=default_root(), metavar="DIR", help="where to put it")
    parser.add_argument("--train", type=int, default=DigitsRecipe.train, help="scenes for training")
    parser.add_argument("--val", type=int, default=DigitsRecipe.val, help="scenes for validation")
    parser.add_argument("--seed", type=int, default=DigitsRecipe.seed)
    parser.add_argument("--processes", type=int, default=None, help="default: one per core, max. 8")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Make or reuse the set and say where it is, how many scenes, and how long it took."""
    args = parse_args(argv)
    try:
        recipe = DigitsRecipe(train=args.train, val=args.val, seed=args.seed)
        print(make_digits(args.output, recipe, args.processes))
    except PruneError as error:
        print(f"make_digits: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
