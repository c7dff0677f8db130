"""Where a model's parameters are, what recipes of smaller widths would save, and carrying them out."""

import argparse
import sys
from pathlib import Path

import d2prune
from d2prune import recipes
from d2prune.checkpoint import build_from_cfg, load_narrower, loading_table, read_checkpoint, write_checkpoint
from d2prune.config import read_config
from d2prune.engine.settings import trace_input_from_cfg
from d2prune.pruning import find_groups


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--config-file", required=True, metavar="F")
    add("--depth", type=int, default=2, help="how many parts of the names the table tells apart; 0: all")
    add("--recipe", action="append", default=[], metavar="YAML", help="steps and their keys; may be repeated")
    add("--output", metavar="DIR", help="write each recipe's <config>_prune<recipe>.yaml there")
    add("--execute", action="store_true", help="prune MODEL.WEIGHTS by each recipe, into --output")
    add("--allow-inexact", action="store_true", help="carry out what is not exact, too")
    add("--load", metavar="PTH", help="fill the config's model from a wider one's weights, into --output")
    add("--prefix", default="", help="what --load puts before the names in the file")
    add("--import", dest="packages", action="append", default=[], metavar="PACKAGE",
        help="import this first: it registers your models")  # fmt: skip
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="for the config")
    return parser.parse_args(argv)


def main(args):
    cfg = read_config(d2prune.get_cfg(), args.config_file, args.opts, args.packages)
    if (args.execute or args.load) and not args.output:
        raise d2prune.PruneError("--execute and --load need --output, the folder to write to")
    model = build_from_cfg(cfg)
    if args.load:
        return load(args, model)
    trace_input = trace_input_from_cfg(cfg, model)
    groups = find_groups(model, trace_input)
    print(recipes.module_table(recipes.grouped(recipes.module_rows(model, trace_input, groups), args.depth)))
    read = [recipes.read_recipe(path) for path in args.recipe]
    if read:
        print("\n" + recipes.what_if_table([recipes.what_if(cfg, recipe, groups) for recipe in read]))
    whole = model if args.execute else None
    for recipe in read if args.output else ():
        places = (args.config_file, args.opts, recipe, args.output)
        print("\n" + recipes.write_recipe(cfg, *places, whole, args.allow_inexact))


def load(args, model):
    print(loading_table(load_narrower(model, read_checkpoint(args.load)["model"], args.prefix)))
    path = Path(args.output) / f"{Path(args.config_file).stem}.pth"
    write_checkpoint({"model": model.state_dict()}, path)
    print(f"written to {path}")


if __name__ == "__main__":
    try:
        main(parse_args())
    except d2prune.PruneError as error:
        sys.exit(f"analyze_model: {error}")
