"""Files and their bases merge into a config as by Detectron2."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.utils.file_io import PathManager

from d2prune.config import get_cfg
from d2prune.config.merging import merge_file, read_with_bases
from d2prune.engine import outputs
from d2prune.errors import PruneError
from tests.each import each
from tests.tiny_blendmask import tiny_cfg

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OURS = [path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "recipes"]
ZOO = Path(model_zoo.__file__).with_name("configs")


def both(file, fresh=get_cfg):
    """A config that the file was merged into by d2prune, and one by Detectron2."""
    ours, theirs = fresh(), fresh()
    merge_file(ours, str(file))
    theirs.merge_from_file(str(file))
    return ours, theirs


@pytest.mark.parametrize("file", sorted(OURS), ids=lambda path: path.stem)
def test_d2prunes_configs_load_as_by_detectron2(file):
    ours, theirs = both(file)
    assert ours == theirs and ours.dump() == theirs.dump()


def test_the_model_zoos_configs_load_as_by_detectron2():
    for file in each(sorted(ZOO.rglob("*.yaml"))):
        assert read_with_bases(str(file)) == CfgNode.load_yaml_with_base(str(file), allow_unsafe=True), file


def test_what_a_prune_writes_loads_as_by_detectron2(tmp_path):
    file = outputs.write_pruned_config(tiny_cfg(), str(tmp_path), str(tmp_path / "x.pth"))
    ours, theirs = both(file)
    assert ours == theirs and ours.MODEL.PRUNING.BASE == "BlendMask"
    ours, theirs = both(tmp_path / outputs.STOCK_FILE, detectron2_cfg)
    assert ours == theirs and ours.MODEL.META_ARCHITECTURE == "PrunedModel"


@pytest.fixture
def write(tmp_path):
    """Writes files by name, and returns the path of the first."""

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text.format(folder=tmp_path))
        return str(tmp_path / f"{next(iter(texts))}.yaml")

    return write


@pytest.mark.parametrize(
    "base", ["b.yaml", "./b.yaml", "{folder}/b.yaml", "[b.yaml, c.yaml]", "[]", "~/b.yaml"]
)
def test_bases_are_found_where_detectron2_finds_them(write, tmp_path, monkeypatch, base):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write(
        a=f"_BASE_: {base}\nVERSION: 2\nMODEL: {{{{MASK_ON: true, FPN: {{{{NORM: GN}}}}}}}}\n",
        b="SEED: 3\nMODEL: {{FPN: {{OUT_CHANNELS: 8}}, MASK_ON: false}}\n",
        c="_BASE_: d.yaml\nSEED: 4\n",
        d="MODEL: {{FPN: {{NORM: BN, OUT_CHANNELS: 16}}}}\n",
    )
    ours, theirs = both(file)
    assert ours == theirs and ours.MODEL.FPN.NORM == "GN" and ours.MODEL.MASK_ON
    assert (ours.SEED, ours.MODEL.FPN.OUT_CHANNELS) == {
        "[b.yaml, c.yaml]": (4, 16), "[]": (-1, 256),
    }.get(base, (3, 8))  # fmt: skip


def test_a_base_on_the_web_is_asked_of_detectron2s_path_manager(write, monkeypatch):
    asked = []

    def opened(path, mode):
        asked.append(path)
        return open(write(b="_BASE_: c.yaml\n" if "b.yaml" in path else "SEED: 3\n"), mode)

    file, real = write(a="_BASE_: https://example.com/x/b.yaml\nVERSION: 2\n"), PathManager.open
    monkeypatch.setattr(PathManager, "open", lambda p, m: (opened if "://" in p else real)(p, m))
    assert read_with_bases(file) == {"SEED": 3, "VERSION": 2}
    assert asked == ["https://example.com/x/b.yaml", "https://example.com/x/c.yaml"]


def test_old_versions_are_upgraded_as_by_detectron2(write):
    for text in ("VERSION: 1\nMODEL: {{WEIGHT: x.pkl}}\n", "MODEL: {{WEIGHT: x.pkl}}\n"):
        ours, theirs = both(write(a=text), detectron2_cfg)
        assert ours == theirs and ours.MODEL.WEIGHTS == "x.pkl" and ours.VERSION == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("_BASE_: a.yaml", "a.yaml': _BASE_ leads in a circle: .*a.yaml -> .*a.yaml$"),
        ("_BASE_: c.yaml", "c.yaml': _BASE_ leads in a circle: .*a.yaml -> .*c.yaml -> .*a.yaml$"),
        ("_BASE_: no.yaml", "a.yaml': _BASE_ '.*no.yaml' does not exist"),
        ("_BASE_: 3", "a.yaml': _BASE_ is 3; expected the path of a file, or a list of paths"),
        ("_BASE_:", "a.yaml': _BASE_ is None; expected the path"),
        ("_BASE_: [b.yaml, [b.yaml]]", r"a.yaml': _BASE_ is \['b.yaml'\]; expected the path"),
        ("_BASE_: e.yaml", "e.yaml' holds nothing; expected keys and values"),
        ("_BASE_: b.yaml\nSEED: {{A: 1}}", "a.yaml': SEED has keys; its _BASE_ has the value 3"),
        ("MODEL: {{on: 1}}", "a.yaml' holds the key True; expected text"),
        ("MODEL:", "a.yaml': MODEL is None; expected keys and values"),
        ("VERSION: 3", "a.yaml': VERSION is 3; expected at most 2"),
        ("VERSION: [2]", r"a.yaml': VERSION is \[2\]; expected at most 2"),
        ("VERSION: two", "a.yaml': VERSION is 'two'; expected at most 2"),
        ("SEED: 2024-01-02", "a.yaml: Key SEED with value <class 'datetime.date'> is not a valid type"),
        ("SEED: lots", "a.yaml: Type mismatch"),
        ("SEED: '{{[]: 1}}'", "a.yaml: "),
        ("NONE: 1", "a.yaml: Non-existent config key: NONE"),
        (f"_BASE_: 0x{'f' * 5000}", "_BASE_ is a number of thousands of digits; expected the path"),
        (f"? 0x{'f' * 5000}\n: 1", "holds the key a number of thousands of digits; expected text"),
        (f"_BASE_: {'x' * 9000}", "a.yaml': _BASE_ '.{199}… does not exist"),
        (f"SEED: '{'-' * 5000}1'", "a.yaml: "),
        ("SEED: {{X: {{Y: 1}}}}", "a.yaml: Type mismatch .*for config key: SEED"),
        (f"MODEL: {'x' * 9000}", "MODEL is 'x{199}…; expected keys and values"),
        (f"SEED: {'x' * 9000}", "a.yaml: Type mismatch .{250,300} … .*for config key: SEED"),
    ],
)
def test_mistakes_are_named(write, text, said):
    file = write(a=text, b="SEED: 3", c="_BASE_: [b.yaml, a.yaml]", e="")
    with pytest.raises(PruneError, match=said) as caught:
        merge_file(get_cfg(), file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_refused_file_changes_nothing(write):
    cfg = get_cfg()
    with pytest.raises(PruneError, match="line 2 holds the tag '!!python/name'"):
        merge_file(cfg, write(a="SEED: 3\nMODEL: !!python/name:os.mkdir ''\n"))
    assert cfg == get_cfg()
