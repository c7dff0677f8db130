"""Train the unpruned baseline for as long as the pruned model was fine-tuned, and add its row."""

import sys

from detectron2.engine import default_argument_parser, default_setup
from train_net import Trainer

import d2prune
from d2prune.config import read_config
from d2prune.engine.finetuning import add_control


def main(args):
    cfg = read_config(d2prune.get_cfg(), args.config_file, args.opts)
    default_setup(cfg, args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    add_control(cfg, trainer.model, trainer._last_eval_results, args.report)


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument("--report", required=True, metavar="DIR", help="where pruning_report.json lies")
    try:
        main(parser.parse_args())
    except d2prune.PruneError as error:
        sys.exit(f"train_control: {error}")
