"""The command that goes on from a prune."""

from __future__ import annotations

import shlex
import sys

import pytest
from detectron2.engine import default_argument_parser

import d2prune
from d2prune.engine import outputs


@pytest.mark.parametrize(
    "words",
    [
        ["--config-file", "my configs/a.yaml", "MODEL.PRUNE", "True", "MODEL.WEIGHTS", "a b.pth"],
        ["--config-file", "a.yaml", "--resume", "MODEL.WEIGHTS", "x", "MODEL.PRUNE", "True",
         "MODEL.FINETUNE", "False", "OUTPUT_DIR", "o p", "DATASETS.TEST", "('a',)"],
        ["--num-gpus", "2", "--config-file", "a.yaml", "MODEL.PRUNE", "True", "SEED", "3"],
    ],
)  # fmt: skip
def test_the_next_command_is_the_one_before_with_the_modes_changed(monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["tools/my train_net.py", *words])
    python, script, *rest = shlex.split(outputs.next_command("out put/model_pruned.pth"))
    assert (python, script) == ("python", "tools/my train_net.py")
    before, after = (default_argument_parser().parse_args(w) for w in (words, rest))
    assert after.config_file == before.config_file and after.num_gpus == before.num_gpus
    assert not after.resume

    def pairs(args):
        return dict(zip(args.opts[::2], args.opts[1::2], strict=True))

    modes = {"MODEL.PRUNE", "MODEL.FINETUNE", "MODEL.WEIGHTS"}
    kept = {key: value for key, value in pairs(before).items() if key not in modes}
    tuning = {"MODEL.FINETUNE": "True", "MODEL.WEIGHTS": "out put/model_pruned.pth"}
    assert pairs(after) == {**kept, **tuning} and len(after.opts) == 2 * len(pairs(after))


def test_without_a_script_the_command_names_train_net(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert shlex.split(outputs.next_command("x.pth"))[:2] == ["python", "train_net.py"]


def test_the_control_is_trained_by_the_command_of_the_fine_tuning(monkeypatch, tmp_path):
    words = "--config-file a.yaml --resume MODEL.FINETUNE True MODEL.WEIGHTS x.pth OUTPUT_DIR o SEED 3"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train_net.py"), *words.split()])
    cfg = d2prune.get_cfg()
    cfg.OUTPUT_DIR = "o"
    assert outputs.control_command(cfg, "base.pth") == ""
    (tmp_path / "train_control.py").touch()
    found = shlex.split(outputs.control_command(cfg, "base.pth"))
    assert found[:4] == ["python", str(tmp_path / "train_control.py"), "--report", "o"]
    assert found[4:] == [
        "--config-file", "a.yaml", "SEED", "3", "MODEL.WEIGHTS", "base.pth", "OUTPUT_DIR", "o/control",
    ]  # fmt: skip
