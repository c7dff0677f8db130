"""LazyConfigs: what is read, what is refused, and the settings that come of it."""

from __future__ import annotations

import pytest
from detectron2 import model_zoo

from d2prune.config import get_cfg
from d2prune.errors import PruneError
from d2prune.lazy.config import prune_defaults, read_lazy_config, settings_of

ZOO = "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py"


@pytest.fixture
def write(tmp_path):
    """Writes a config of the zoo with some more lines, and returns its path."""

    def write(text="", name="config.py"):
        zoo = model_zoo.get_config_file(ZOO)
        head = (
            f"from detectron2.config import LazyConfig\nglobals().update(LazyConfig.load({zoo!r}).items())\n"
        )
        (tmp_path / name).write_text(head + text)
        return str(tmp_path / name)

    return write


def test_the_keys_are_those_of_yaml():
    keys = get_cfg().MODEL.PRUNING
    expected = {"enabled", "finetune", *(key.lower() for key in keys)} - {"spec", "base"}
    assert set(prune_defaults()) == expected
    assert prune_defaults()["amount"] == keys.AMOUNT and prune_defaults()["enabled"] is False


def test_a_config_without_pruning_keys_has_them_all_afterwards(write):
    assert dict(read_lazy_config(write()).prune) == prune_defaults()


def test_options_win_over_the_file_and_the_file_over_defaults(write):
    file = write("prune = dict(amount=0.3, round_to=4)\n")
    prune = read_lazy_config(file, ["prune.amount=0.2", "prune.ratios=[[backbone.*,0.1]]"]).prune
    assert (prune.amount, prune.round_to, prune.max_ratio) == (0.2, 4, 0.75)
    assert prune.ratios == [["backbone.*", 0.1]]


@pytest.mark.parametrize(
    ("text", "opts", "message"),
    [
        ("prune = dict(amuont=1)", [], "prune.amuont is unknown; expected one of: enabled, finetune, target"),
        ("", ["prune.base=x"], "prune.base is unknown"),
        ("prune = dict(amount='half')", [], "prune.amount is 'half'; expected a float, as its default 0.5"),
        ("", ["prune.enabled=1"], "prune.enabled is 1; expected a bool"),
        ("", ["prune.round_to=True"], "prune.round_to is True; expected a int"),
        (
            "",
            ["prune.protect=backbone"],
            r"prune.protect is 'backbone'; expected a list, as its default \[\]",
        ),
        ("", ["train.max_itr=3"], "train.max_itr is no key of the config; expected one of: output_dir"),
        ("", ["modle.x=3"], "modle.x is no key of the config; expected one of: dataloader, model"),
        ("", ["prune.amount", "0.3"], "expected key=value after the options; got prune.amount"),
        ("", ["prune.amount=[0.3"], "expected key=value after the options; got prune.amount=.0.3: "),
        ("del model", [], "config.py has no 'model': expected a LazyConfig"),
    ],
)
def test_what_would_do_nothing_is_refused(write, text, opts, message):
    with pytest.raises(PruneError, match=message):
        read_lazy_config(write(text), opts)


@pytest.mark.parametrize("name", ["none.py", "config.txt"])
def test_a_wrong_file_is_named(write, tmp_path, name):
    write(name="config.txt")
    with pytest.raises(PruneError, match=f"--config-file '.*{name}'"):
        read_lazy_config(str(tmp_path / name))


def test_what_detectron2_reads_may_be_given(write):
    opts = ["train.seed=3", "+own.key=1", "model.roi_heads.box_predictor.test_topk_per_image=7"]
    config = read_lazy_config(write(), opts)
    assert config.train.seed == 3 and config.own.key == 1
    assert config.model.roi_heads.box_predictor.test_topk_per_image == 7


def test_settings_are_the_configs(write):
    opts = ["prune.enabled=True", "prune.amount=1", "train.output_dir=o", "train.init_checkpoint=x.pth"]
    cfg = settings_of(read_lazy_config(write(), [*opts, "train.device=meta", "prune.input_size=[64,96]"]))
    assert cfg.MODEL.PRUNE and not cfg.MODEL.FINETUNE and cfg.MODEL.PRUNING.AMOUNT == 1
    assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE) == ("o", "x.pth", "meta")
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (800, 1333)
    assert cfg.DATASETS.TEST == ("coco_2017_val",) and list(cfg.MODEL.PRUNING.INPUT_SIZE) == [64, 96]
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (0.1, 64, 184375)


def test_the_test_size_and_the_images_are_the_loaders(write):
    text = "dataloader.test.mapper.augmentations[0].update(short_edge_length=512, max_size=640)\n"
    cfg = settings_of(read_lazy_config(write(text)))
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (512, 640)
    for text in ("del dataloader", "del dataloader.test.mapper", "dataloader.test = dict(dataset=[1])"):
        cfg = settings_of(read_lazy_config(write(text)))
        assert cfg.DATASETS.TEST == () and cfg.INPUT.MIN_SIZE_TEST == get_cfg().INPUT.MIN_SIZE_TEST


def test_a_folder_that_was_moved_is_found(write, tmp_path):
    pruned = 'model = dict(prune_base="x", prune_spec="/no/such/spec.json")\n'
    file = write(pruned + 'train = dict(init_checkpoint="/no/such/model_final.pth", output_dir="o")')
    (tmp_path / "spec.json").write_text("{}")
    config = read_lazy_config(file)
    assert config.model.prune_spec == str(tmp_path / "spec.json")
    assert config.train.init_checkpoint == "/no/such/model_final.pth"
