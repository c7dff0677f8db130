"""What a command line gives becomes a config, or one clear error."""

import pytest

from d2prune.config import get_cfg, read_config
from d2prune.errors import PruneError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("VERSION: 2\nMODEL:\n  PRUNE: True\n")
    return str(path)


def test_file_then_options(file):
    cfg = read_config(get_cfg(), file, ["MODEL.PRUNING.AMOUNT", "0.3"])
    assert cfg.MODEL.PRUNE and cfg.MODEL.PRUNING.AMOUNT == 0.3 and cfg.is_frozen()


@pytest.mark.parametrize(
    "opts, imports, said",
    [
        (["MODEL.FOO", "1"], (), "MODEL.FOO"),
        (["MODEL.PRUNE"], (), "KEY VALUE"),
        (["MODEL.PRUNING.AMOUNT", "lots"], (), "lots"),
        ([], ("no_such_module",), "--import no_such_module"),
    ],
)
def test_mistakes_are_named(file, opts, imports, said):
    with pytest.raises(PruneError, match=said):
        read_config(get_cfg(), file, opts, imports)


def test_unknown_keys_and_missing_files_are_named(tmp_path, file):
    with pytest.raises(PruneError, match="nowhere.yaml"):
        read_config(get_cfg(), str(tmp_path / "nowhere.yaml"))
    (tmp_path / "d.yaml").write_text("VERSION: 2\nMODEL:\n  PRUNNING: True\n")
    with pytest.raises(PruneError, match="PRUNNING"):
        read_config(get_cfg(), str(tmp_path / "d.yaml"))


def test_a_folder_that_was_moved_is_found(tmp_path):
    gone = "/no/such/folder"
    pruning = f"  PRUNING: {{BASE: BlendMask, SPEC: {gone}/pruning_spec.json}}\n"
    text = f"VERSION: 2\nMODEL:\n  WEIGHTS: {gone}/model_final.pth\n{pruning}"
    (tmp_path / "pruned.yaml").write_text(text)
    (tmp_path / "pruning_spec.json").write_text("{}")
    cfg = read_config(get_cfg(), str(tmp_path / "pruned.yaml"))
    assert cfg.MODEL.PRUNING.SPEC == str(tmp_path / "pruning_spec.json")
    assert cfg.MODEL.WEIGHTS == f"{gone}/model_final.pth", "no such file beside it: the error names the path"
    (tmp_path / "model_final.pth").write_text("")
    assert read_config(get_cfg(), str(tmp_path / "pruned.yaml")).MODEL.WEIGHTS == str(
        tmp_path / "model_final.pth"
    )
    (tmp_path / "c.yaml").write_text(text.replace("BASE: BlendMask, ", ""))
    assert read_config(get_cfg(), str(tmp_path / "c.yaml")).MODEL.WEIGHTS == f"{gone}/model_final.pth"
