"""Train the unpruned baseline for as long as the pruned model was fine-tuned, and add its row."""

from detectron2.engine import default_argument_parser, default_setup
from train_net import Trainer

import d2prune
from d2prune.config import read_config
from d2prune.engine.command_line import run_command
from d2prune.engine.finetuning import add_control


def main(args):
    cfg = read_config(d2prune.get_cfg(), args.config_file, args.opts, args.imports)
    default_setup(cfg, args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    add_control(cfg, trainer.model, trainer._last_eval_results, args.report)


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument("--report", required=True, metavar="DIR", help="where pruning_report.json lies")
    run_command(main, parser)
