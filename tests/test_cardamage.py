"""A user's project: its own COCO json, Trainer and mapper, pruned with the mixin's two lines."""

from __future__ import annotations

import json

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator

import d2prune
from d2prune.modeling import basis_sem_from_instances

CLASSES = 9
IMAGES = 3
TEST_SIZE = 96  # pixels
SETTINGS = {
    "MODEL.META_ARCHITECTURE": "BlendMask",
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_fcos_narrow_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.PROPOSAL_GENERATOR.NAME": "FCOS",
    "MODEL.FCOS.NUM_CLASSES": CLASSES,
    "MODEL.FCOS.TOP_LEVELS": 0,
    "MODEL.FCOS.IN_FEATURES": ["p3", "p4", "p5"],
    "MODEL.FCOS.FPN_STRIDES": [8, 16, 32],
    "MODEL.FCOS.SIZES_OF_INTEREST": [32, 64],
    "MODEL.FCOS.NUM_CLS_CONVS": 1,
    "MODEL.FCOS.NUM_BOX_CONVS": 1,
    "MODEL.FCOS.PRIOR_PROB": 0.3,  # random weights that detect something
    "MODEL.FCOS.POST_NMS_TOPK_TEST": 5,
    "MODEL.BASIS_MODULE.LOSS_ON": True,
    "MODEL.BASIS_MODULE.NORM": "BN",
    "MODEL.BASIS_MODULE.NUM_CLASSES": CLASSES,
    "MODEL.BASIS_MODULE.CONVS_DIM": 16,
    "MODEL.BASIS_MODULE.NUM_CONVS": 1,
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": False,
    "MODEL.PRUNING.ROUND_TO": 2,
    "DATASETS.TRAIN": ("cardamage_few_train",),
    "DATASETS.TEST": ("cardamage_few_val",),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (TEST_SIZE,),
    "INPUT.MIN_SIZE_TEST": TEST_SIZE,
    "INPUT.MAX_SIZE_TRAIN": TEST_SIZE,
    "INPUT.MAX_SIZE_TEST": TEST_SIZE,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
    "TEST.EVAL_PERIOD": 0,
}


class ProjectMapper(DatasetMapper):
    """A project's own mapper: Detectron2's, with the basis target that LOSS_ON needs."""

    def __call__(self, dataset_dict):
        sample = super().__call__(dataset_dict)
        size = tuple(sample["image"].shape[1:])
        sample["basis_sem"] = basis_sem_from_instances(sample["instances"], size)
        return sample


class ProjectTrainer(DefaultTrainer):
    """A project's own trainer, which knows nothing of pruning."""

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=ProjectMapper(cfg, True))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR, use_fast_impl=False)


class Trainer(d2prune.PruningMixin, ProjectTrainer):
    pass


def few(annotations):
    """The part of a COCO json that concerns its first IMAGES annotated images."""
    used = sorted({each["image_id"] for each in annotations["annotations"]})[:IMAGES]
    return annotations | {
        "images": [each for each in annotations["images"] if each["id"] in used],
        "annotations": [each for each in annotations["annotations"] if each["image_id"] in used],
    }


@pytest.fixture(scope="module")
def datasets(shared, tmp_path_factory):
    root = shared / "data" / "cardamage"
    if not root.is_dir():
        pytest.skip("no cardamage data set in the shared folder")
    names = []
    for split in ("train", "val"):
        path = tmp_path_factory.mktemp("json") / f"{split}.json"
        path.write_text(json.dumps(few(json.loads((root / f"{split}.json").read_text()))))
        names.append(f"cardamage_few_{split}")
        register_coco_instances(names[-1], {}, str(path), str(root / split))
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def project_cfg(folder, *pairs):
    cfg = d2prune.get_cfg()
    cfg.merge_from_list([value for pair in SETTINGS.items() for value in pair])
    cfg.MODEL.DEVICE = str(torch.get_default_device())
    cfg.OUTPUT_DIR = str(folder)
    cfg.merge_from_list(list(pairs))
    return cfg


def run(cfg):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer, trainer.train()


@pytest.fixture(scope="module")
def baseline(datasets, tmp_path_factory):
    """A checkpoint of random weights, written by Detectron2's own checkpointer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("baseline")
    model = ProjectTrainer.build_model(project_cfg(folder))
    DetectionCheckpointer(model, str(folder)).save("baseline")
    return str(folder / "baseline.pth")


@pytest.fixture(scope="module")
def pruned(baseline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned")
    _, results = run(project_cfg(folder, "MODEL.PRUNE", True, "MODEL.WEIGHTS", baseline))
    return folder, results


def test_the_project_prunes(pruned):
    folder, results = pruned
    assert {"bbox", "segm"} <= set(results)
    report = json.loads((folder / "pruning_report.json").read_text())
    assert report["proof"]["exact"]
    assert report["after"]["macs"] == pytest.approx(0.5 * report["before"]["macs"], rel=0.02)


def test_the_project_fine_tunes_what_it_pruned(pruned, baseline, tmp_path):
    weights = str(pruned[0] / "model_pruned.pth")
    trainer, _ = run(project_cfg(tmp_path, "MODEL.FINETUNE", True, "MODEL.WEIGHTS", weights))
    assert trainer.iter == SETTINGS["SOLVER.MAX_ITER"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert any("loss_basis_sem" in row and "loss_mask" in row for row in rows), rows
    spec = d2prune.PruneSpec.from_json((tmp_path / "pruning_spec.json").read_text())
    assert spec.base == "BlendMask"


def test_the_projects_predictor_runs_the_pruned_model(pruned, datasets):
    cfg = project_cfg(pruned[0])
    cfg.merge_from_file(str(pruned[0] / "pruned.yaml"))
    sample = DatasetCatalog.get(datasets[1])[0]
    image = DatasetMapper(cfg, False)(sample)["image"].permute(1, 2, 0).numpy()
    found = DefaultPredictor(cfg)(image)["instances"]
    assert found.pred_masks.shape[1:] == image.shape[:2]
