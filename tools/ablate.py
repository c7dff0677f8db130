"""Try a recipe one step at a time: prune, train for a little, evaluate; keep the step or roll it back."""

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from train_net import Trainer

import d2prune
from d2prune.config import read_config
from d2prune.engine.command_line import run_command
from d2prune.engine.settings import log_to
from d2prune.recipes import ablate, ablation_table, read_recipe


def main(args):
    cfg = read_config(d2prune.get_cfg(), args.config_file, args.opts, args.imports)
    recipe = read_recipe(args.recipe)
    default_setup(cfg, args)
    log_to(cfg)
    table = ablation_table(ablate(cfg, recipe, Trainer, args.allowed_drop, args.alone))
    if comm.is_main_process():
        print(table)


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument("--recipe", required=True, metavar="YAML", help="steps and the keys they set")
    parser.add_argument("--allowed-drop", type=float, default=2.0, metavar="AP", help="in points; default 2")
    parser.add_argument("--alone", action="store_true", help="start every step from the baseline")
    run_command(main, parser)
