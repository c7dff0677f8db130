"""Try cuts, a recipe's steps or amounts: prune, train for a little, evaluate; keep it or roll it back."""

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from train_net import Trainer

import d2prune
from d2prune.config import read_config
from d2prune.engine.command_line import run_command
from d2prune.engine.settings import log_to
from d2prune.recipes import ablate, ablation_table, largest_kept, read_recipe


def main(args):
    cfg = read_config(d2prune.get_cfg(), args.config_file, args.opts, args.imports)
    default_setup(cfg, args)
    log_to(cfg)
    if args.recipe:
        trials = ablate(cfg, read_recipe(args.recipe), Trainer, args.allowed_drop, args.alone)
    else:
        trials = largest_kept(cfg, args.amounts, Trainer, args.allowed_drop)
    if comm.is_main_process():
        print(ablation_table(trials))


if __name__ == "__main__":
    parser = default_argument_parser()
    cuts = parser.add_mutually_exclusive_group(required=True)
    cuts.add_argument("--recipe", metavar="YAML", help="steps and the keys they set")
    cuts.add_argument("--amounts", type=float, nargs="+", help="fractions to remove, the largest first")
    parser.add_argument("--allowed-drop", type=float, default=2.0, metavar="AP", help="in points; default 2")
    parser.add_argument("--alone", action="store_true", help="start every step from the baseline")
    run_command(main, parser)
