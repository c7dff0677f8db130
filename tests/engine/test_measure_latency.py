"""tools/measure_latency.py: a table that is measured where the model will run, for a prune elsewhere."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.engine.tiny_runs import ROOT, command, pairs_of
from tests.tiny_blendmask import CONFIG, TINY, device


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("measure_latency", ROOT / "tools" / "measure_latency.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def words(table, *more):
    options = {**TINY, "MODEL.DEVICE": device()}
    return ["--config-file", str(CONFIG), "--output", str(table), "--threads", "1",
            *(str(x) for x in (*pairs_of(options), *more))]  # fmt: skip


def test_a_prune_is_planned_by_the_tools_table(tool, baseline, data, tmp_path, capsys):
    table = tmp_path / "table.json"
    assert tool(words(table)) == 0
    said = capsys.readouterr().out
    assert f"{table}: " in said and " ms, " in said
    other = json.loads(table.read_text())
    other["measured_on"]["device"] = "cpu: of an edge box"
    table.write_text(json.dumps(other))
    run = tmp_path / "run"
    command(
        CONFIG, run, "MODEL.PRUNE", "True", "MODEL.WEIGHTS", str(baseline), "DATASETS.TEST", "()",
        "MODEL.PRUNING.CALIBRATION_IMAGES", "0", "MODEL.PRUNING.TARGET", "latency",
        "MODEL.PRUNING.AMOUNT", "0.2", "MODEL.PRUNING.LATENCY_TABLE", str(table),
    )  # fmt: skip
    report = json.loads((run / "pruning_report.json").read_text())
    assert report["latency"] is None and report["reached"] == pytest.approx(0.2, abs=0.05)


def test_what_is_wrong_is_one_line(tool, tmp_path, capsys):
    assert tool(words(tmp_path / "table.json", "MODEL.NONE", "1")) == 2
    assert capsys.readouterr().err.startswith("measure_latency: ")
