"""configs/DETR/train_digits.py: a loop of one's own around prune, save and load."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from d2prune.data.digits import DigitsRecipe, make_digits
from d2prune.errors import PruneError

SCRIPT = Path(__file__).resolve().parents[2] / "configs" / "DETR" / "train_digits.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("d2prune_train_digits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["d-fine", pytest.param("rt-detr", marks=pytest.mark.slow)])
def test_it_trains_prunes_fine_tunes_and_reloads(script, kind, tmp_path, capsys):
    pytest.importorskip("transformers", reason="transformers is not installed")
    make_digits(tmp_path / "digits", DigitsRecipe(train=4, val=2), processes=1)
    words = f"--model {kind} --steps 2 --finetune-steps 2 --batch 2 --device cpu".split()
    args = ["--data", str(tmp_path / "digits"), "--output", str(tmp_path / "out"), *words]
    report = script.main(script.parse(args))
    assert list(report) == ["trained", "pruned", "fine-tuned", "reloaded"]
    assert report["reloaded"] == report["fine-tuned"] != report["pruned"]
    assert (tmp_path / "out" / "model_pruned.pth").is_file()
    assert "Proof(exact=True" in capsys.readouterr().out


def test_without_transformers_it_says_what_to_install(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PruneError, match=r"needs transformers: pip install 'd2prune\[zoo\]'"):
        script.build("d-fine")
