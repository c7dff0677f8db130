"""Train, prune, fine-tune or evaluate a model: Detectron2's own arguments, and MODEL.PRUNE / FINETUNE."""

from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.evaluation import COCOEvaluator

import d2prune
from d2prune.config import read_config
from d2prune.data import DatasetMapperWithBasis
from d2prune.engine.command_line import run_command
from d2prune.engine.optimizer import build_optimizer
from d2prune.engine.settings import log_to


class Trainer(d2prune.PruningMixin, DefaultTrainer):
    """COCO evaluation, AdelaiDet's mapper, and AdamW where SOLVER.OPTIMIZER asks for it."""

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=DatasetMapperWithBasis(cfg, True))

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR, use_fast_impl=False)


def main(args):
    cfg = read_config(d2prune.get_cfg(), args.config_file, args.opts, args.imports)
    default_setup(cfg, args)
    log_to(cfg)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = d2prune.PruningCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    run_command(main)
