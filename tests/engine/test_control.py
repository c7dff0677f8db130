"""The control: the unpruned baseline, trained on, gets its row in the report."""

import shutil

import pytest

from d2prune.engine.finetuning import add_control
from d2prune.errors import PruneError
from d2prune.report.record import read_report_json
from tests.engine.tiny_runs import run_cfg
from tests.tiny_blendmask import tiny_model

RESULTS = {"bbox": {"AP": 12.0}, "segm": {"AP": 10.0}}


def test_the_control_is_a_row_of_the_report(pruned, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(pruned, folder)
    for _ in range(2):  # a second control takes the first one's place
        add_control(run_cfg(tmp_path / "control"), tiny_model(), RESULTS, str(folder))
    rows = {stage.name: stage for stage in read_report_json(folder).stages}
    assert list(rows) == ["baseline", "pruned", "continued baseline"]
    control = rows["continued baseline"]
    assert (control.mask_ap, control.iterations) == (10.0, 2)
    assert control.macs == rows["baseline"].macs and control.latency_ms.median > 0
    assert "continued baseline" in (folder / "pruning_report.html").read_text()


def test_without_a_report_there_is_nothing_to_add_to(data, tmp_path):
    with pytest.raises(PruneError, match="prune first"):
        add_control(run_cfg(tmp_path / "control"), tiny_model(), RESULTS, str(tmp_path))
