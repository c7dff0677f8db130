"""The mixin's two lines on trainers of other people: AdelaiDet's shape, and a user's ten lines."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import build_detection_train_loader, detection_utils
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.utils.env import seed_all_rng

import d2prune
from d2prune.checkpoint import build_from_cfg, read_checkpoint, read_spec
from d2prune.engine.trainer import as_pruning
from d2prune.errors import PruneError
from tests.each import each
from tests.engine.tiny_runs import run_cfg, weights_of, write_coco
from tests.tiny_blendmask import detect, equal, tiny_cfg

PRUNE = ("MODEL.PRUNE", True)
TUNE = ("MODEL.FINETUNE", True)
NO_TEST = ("DATASETS.TEST", ())


class OwnCheckpointer(DetectionCheckpointer):
    """Does something of its own when it saves and when it loads."""

    def save(self, name, **kwargs):
        super().save(name, mark="own", **kwargs)

    def _load_file(self, filename):
        loaded = super()._load_file(filename)
        loaded["read_by"] = "own"
        return loaded


class AdetShaped(DefaultTrainer):
    """Passes DefaultTrainer's constructor by, builds all itself, and replaces the checkpointer."""

    def __init__(self, cfg):
        super(DefaultTrainer, self).__init__()
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self._trainer = SimpleTrainer(create_ddp_model(model), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self):
        made = super().build_hooks()
        for index, hook in enumerate(made):
            if isinstance(hook, hooks.PeriodicCheckpointer):
                self.checkpointer = OwnCheckpointer(
                    self.model, self.cfg.OUTPUT_DIR, optimizer=self.optimizer, scheduler=self.scheduler
                )
                period = self.cfg.SOLVER.CHECKPOINT_PERIOD
                made[index] = hooks.PeriodicCheckpointer(self.checkpointer, period)
        return made


class AdetPruner(d2prune.PruningMixin, AdetShaped):
    pass


def run(trainer, *args, resume=False):
    made = trainer(run_cfg(*args))
    made.resume_or_load(resume=resume)
    return made, made.train()


def test_a_trainer_like_adelaidets_prunes_and_finetunes(data, baseline, tmp_path):
    weights = ("MODEL.WEIGHTS", str(baseline))
    run(AdetPruner, tmp_path, *PRUNE, *NO_TEST, *weights)
    start = str(tmp_path / "model_pruned.pth")
    args = (*TUNE, *NO_TEST, "MODEL.WEIGHTS", start, "SOLVER.CHECKPOINT_PERIOD", 1)
    trainer, _ = run(AdetPruner, tmp_path, *args)
    assert isinstance(trainer.checkpointer, OwnCheckpointer)
    for name in ("model_0000000.pth", "model_final.pth"):
        saved = read_checkpoint(tmp_path / name)
        assert saved["mark"] == "own" and saved["optimizer"] and "scheduler" in saved
        assert read_spec(tmp_path / name) == read_spec(start)
        assert torch.load(tmp_path / name, weights_only=False)["struct"].prune_spec
    assert trainer.checkpointer.load(str(tmp_path / "model_final.pth"))["read_by"] == "own"
    found = detect(build_from_cfg(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))))
    assert equal(found, detect(trainer.model))


def test_a_trainer_like_adelaidets_does_both_at_once(data, baseline, tmp_path):
    run(AdetPruner, tmp_path, *PRUNE, *TUNE, *NO_TEST, "MODEL.WEIGHTS", str(baseline))
    assert read_spec(tmp_path / "model_final.pth") == read_spec(tmp_path / "model_pruned.pth")


def test_without_the_modes_the_mixin_changes_no_training(data, baseline, tmp_path):
    results = []
    for name, kind in (("own", d2prune.PruneTrainer), ("stock", DefaultTrainer)):
        args = (*NO_TEST, "MODEL.WEIGHTS", str(baseline))
        seed_all_rng(7)
        run(kind, tmp_path / name, *args)
        results.append(weights_of(tmp_path / name / "model_final.pth"))
    assert equal(*results)
    saved = torch.load(tmp_path / "own" / "model_final.pth", weights_only=True)
    stock = torch.load(tmp_path / "stock" / "model_final.pth", weights_only=True)
    assert saved.keys() == stock.keys(), "an unpruned model's file is Detectron2's"


class Counting(DatasetEvaluator):
    """A user's own evaluator, whose results are no AP."""

    def reset(self):
        self.images = 0

    def process(self, inputs, outputs):
        self.images += len(inputs)

    def evaluate(self):
        return {"count": {"images": self.images}}


def own_mapper(record):
    record = dict(record)
    image = detection_utils.read_image(record["file_name"], format="BGR")
    annotations = [dict(a, bbox_mode=a["bbox_mode"]) for a in record.pop("annotations")]
    instances = detection_utils.annotations_to_instances(annotations, image.shape[:2], "bitmask")
    image = torch.as_tensor(image.transpose(2, 0, 1).copy())
    return {**record, "image": image, "instances": instances}


class MyTrainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=own_mapper)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return [COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR, use_fast_impl=False), Counting()]


class Trainer(d2prune.PruningMixin, MyTrainer):
    pass


@pytest.fixture
def own_data(tmp_path):
    """A user's COCO JSON, registered under a name of its own."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    register_coco_instances("my_set", {}, *write_coco(tmp_path / "my_set", 2, seed=5))
    yield ("DATASETS.TRAIN", ("my_set",), "DATASETS.TEST", ("my_set",))
    DatasetCatalog.remove("my_set")
    MetadataCatalog.remove("my_set")


def test_a_users_ten_lines_prune_and_finetune(own_data, baseline, tmp_path):
    out = tmp_path / "out"
    loss_off = ("MODEL.BASIS_MODULE.LOSS_ON", False)  # their mapper makes no basis_sem
    both = (*PRUNE, *TUNE, *own_data, *loss_off, "MODEL.WEIGHTS", str(baseline))
    run(Trainer, out, *both, "MODEL.PRUNING.AMOUNT", 0.3)
    stages = json.loads((out / "pruning_report.json").read_text())["stages"]
    assert [s["name"] for s in stages] == ["baseline", "pruned", "fine-tuned"]
    assert all(s["box_ap"] is not None for s in each(stages))
    assert read_spec(out / "model_final.pth") and (out / "pruned.yaml").is_file()


def test_an_existing_checkpointer_keeps_its_class_and_state(tmp_path, data):
    model = torch.nn.Linear(1, 1)
    own = OwnCheckpointer(model, str(tmp_path), something=model)
    made = as_pruning(own, save_struct=False)
    assert made is own and isinstance(made, d2prune.PruningCheckpointer)
    assert isinstance(made, OwnCheckpointer) and made.checkpointables == {"something": model}
    assert not made.save_struct and d2prune.PruningCheckpointer.save_struct, "one object, no class"
    assert as_pruning(made, True) is made and type(OwnCheckpointer) is type


def test_the_struct_can_be_left_out(data, baseline, tmp_path):
    args = (*PRUNE, *NO_TEST, "MODEL.WEIGHTS", str(baseline), "MODEL.PRUNING.SAVE_STRUCT", False)
    run(d2prune.PruneTrainer, tmp_path, *args)
    assert "struct" not in torch.load(tmp_path / "model_pruned.pth", weights_only=False)


def test_train_alone_prunes_too(data, baseline, tmp_path):
    trainer = d2prune.PruneTrainer(run_cfg(tmp_path, *PRUNE, *NO_TEST, "MODEL.WEIGHTS", str(baseline)))
    trainer.train()
    assert read_spec(tmp_path / "model_pruned.pth")


def text_for(*pairs):
    """The error that a trainer of this config ends with."""

    def attempt(output):
        with pytest.raises(PruneError) as caught:
            run(d2prune.PruneTrainer, output, *NO_TEST, *pairs)
        return str(caught.value)

    return attempt


def test_bad_requests_are_named_and_nothing_is_written(data, baseline, tmp_path):
    weights = ("MODEL.WEIGHTS", str(baseline))
    expected = [
        ("MODEL.PRUNING.CRITERION", "foo", "MODEL.PRUNING.CRITERION is 'foo'; expected one of: "),
        ("MODEL.PRUNING.AMOUNT", 1.3,
         "MODEL.PRUNING.AMOUNT is 1.3; expected a fraction removed, 0 < AMOUNT < 1"),
        ("MODEL.PRUNING.PROTECT", ["bakbone.*"],
         "MODEL.PRUNING.PROTECT pattern 'bakbone.*' matches no module; did you mean 'backbone.*'?"),
        ("MODEL.PRUNING.PROTECT", ["*"], "nothing was pruned: "),
        ("MODEL.PRUNING.AMOUNT", 0.99, "AMOUNT 0.99 of macs can't be reached: at most 0."),
        ("MODEL.PRUNING.RATIOS", ["a"], "MODEL.PRUNING.RATIOS has the row 'a'"),
        ("MODEL.PRUNING.INPUT_SIZE", (64,), "MODEL.PRUNING.INPUT_SIZE is (64,)"),
        ("MODEL.PRUNING.TARGET", "flops", "MODEL.PRUNING.TARGET is 'flops'"),
        ("MODEL.PRUNING.ALLOCATION", "some", "MODEL.PRUNING.ALLOCATION is 'some'"),
    ]  # fmt: skip
    for index, (key, value, text) in enumerate(expected):
        output = tmp_path / str(index)
        assert text_for(*PRUNE, *weights, key, value)(output).startswith(text)
        assert {file.name for file in output.iterdir()} <= {"log.txt", ".d2prune.lock"}, key


def test_weights_that_are_not_finite_are_refused(data, baseline, tmp_path):
    held = torch.load(baseline, weights_only=True)
    held["model"]["backbone.bottom_up.res4.1.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(held, tmp_path / "x.pth")
    text = text_for(*PRUNE, "MODEL.WEIGHTS", str(tmp_path / "x.pth"))(tmp_path / "out")
    assert text == "backbone.bottom_up.res4.1.conv1.weight is not finite; refusing to prune"


@pytest.mark.parametrize("mode", [PRUNE, TUNE, (*PRUNE, *TUNE)])
def test_wrong_paths_are_named(data, tmp_path, mode):
    text = text_for(*mode, "MODEL.WEIGHTS", str(tmp_path / "gone.pth"))(tmp_path / "out")
    assert f"'{tmp_path / 'gone.pth'}' does not exist" in text
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 nonsense")
    text = text_for(*mode, "MODEL.WEIGHTS", str(tmp_path / "x.pth"))(tmp_path / "out")
    assert f"'{tmp_path / 'x.pth'}' is not a readable checkpoint" in text


def test_finetuning_needs_a_pruned_checkpoint(data, baseline, tmp_path):
    assert text_for(*TUNE)(tmp_path) == (
        "MODEL.FINETUNE needs MODEL.WEIGHTS: the path of a pruned checkpoint "
        "(OUTPUT_DIR/model_pruned.pth after MODEL.PRUNE True)"
    )
    assert text_for(*TUNE, "MODEL.WEIGHTS", str(baseline))(tmp_path) == (
        f"'{baseline}' holds no pruning spec: prune it first with MODEL.PRUNE True, or train it with "
        "MODEL.FINETUNE False"
    )


def test_pruning_needs_weights_and_does_not_overwrite_them(data, pruned, tmp_path):
    assert text_for(*PRUNE)(tmp_path).startswith("MODEL.PRUNE needs MODEL.WEIGHTS")
    weights = ("MODEL.WEIGHTS", str(pruned / "model_pruned.pth"))
    before = (pruned / "model_pruned.pth").read_bytes()
    assert "which MODEL.PRUNE would overwrite" in text_for(*PRUNE, *weights)(pruned)
    assert (pruned / "model_pruned.pth").read_bytes() == before


def test_a_pruned_file_of_another_class_is_refused(data, pruned, tmp_path):
    other = ("MODEL.META_ARCHITECTURE", "OneStageDetector")
    weights = ("MODEL.WEIGHTS", str(pruned / "model_pruned.pth"))
    assert text_for(*TUNE, *other, *weights)(tmp_path) == (
        f"'{pruned / 'model_pruned.pth'}' is a pruned checkpoint (spec version 2, base BlendMask); "
        "the model to load is an unpruned OneStageDetector"
    )
