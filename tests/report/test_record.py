"""The words of the record: results, rows, the next command."""

from __future__ import annotations

import math
import shlex
import sys

import pytest
from detectron2.engine import default_argument_parser

from d2prune.report import record


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({}, {}),
        ({"bbox": {"AP": 1.5}, "segm": {"AP": 2}}, {"bbox": 1.5, "segm": 2.0}),
        ({"bbox": {"AP": math.nan}}, {"bbox": 0.0}),
        ({"count": {"images": 3}}, {}),
        ({"a_val": {}, "b_val": {"bbox": {"AP": 4.0}}}, {"bbox": 4.0}),
        ({"a_val": {"bbox": {"AP": 3.0}}, "b_val": {"bbox": {"AP": 4.0}}}, {"bbox": 3.0}),
        ({"speed": 3.0, "bbox": {"AP": 1.0, "AP50": 2.0}}, {"bbox": 1.0}),
    ],
)
def test_the_ap_is_found_in_what_detectron2_returns(results, expected):
    assert record.average_precision(results) == expected


def test_a_row_without_results_has_no_ap():
    row = record.stage("pruned", {"params": 1, "macs": 2}, {}, "x.pth")
    assert (row["box_ap"], row["mask_ap"], row["params"], row["macs"]) == (None, None, 1, 2)


def test_a_report_goes_to_a_file_and_back(tmp_path):
    assert record.read_report_json(str(tmp_path)) is None
    record.write_report_json({"stages": [], "µ": 1.5}, str(tmp_path))
    assert record.read_report_json(str(tmp_path)) == {"stages": [], "µ": 1.5}


def test_a_number_that_json_lacks_leaves_the_report_before(tmp_path):
    record.write_report_json({"a": 1}, str(tmp_path))
    with pytest.raises(ValueError):
        record.write_report_json({"a": math.nan}, str(tmp_path))
    assert record.read_report_json(str(tmp_path)) == {"a": 1}


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
    python, script, *rest = shlex.split(record.next_command("out put/model_pruned.pth"))
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
    assert shlex.split(record.next_command("x.pth"))[:2] == ["python", "train_net.py"]
