"""Config files: the right config or a PruneError."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import yaml
from detectron2.config import CfgNode
from hypothesis import given, settings
from hypothesis import strategies as st

from d2prune.config import get_cfg, read_config
from tests.fuzz.damage import damaged
from tests.fuzz.good import config
from tests.fuzz.loads import alike
from tests.fuzz.specs import REPRODUCIBLE
from tests.fuzz.trees import changed
from tests.fuzz.watched import Watch, WrongError

BASE = "VERSION: 2\nSEED: 11\nMODEL: {MASK_ON: true, FPN: {OUT_CHANNELS: 24}}\n"
KEYS = (
    "SEED", "VERSION", "OUTPUT_DIR", "_BASE_", "MODEL", "TEST.AUG.MIN_SIZES", "MODEL.WEIGHTS",
    "MODEL.PRUNING.AMOUNT", "MODEL.PRUNING.SPEC", "MODEL.PRUNING.BASE", "MODEL.PRUNING.RATIOS",
    "MODEL.PIXEL_MEAN", "MODEL.PRUNE", "SOLVER", "INPUT.CROP.SIZE", "MODEL.NOSUCH", "X", "DATASETS.TRAIN",
    "SOLVER.BASE_LR",
)  # fmt: skip
SCALARS = (
    "!!python/object/apply:os.mkdir [evil]", "!!python/tuple [1, 2]", "!!python/name:os.mkdir ''",
    "!!binary aGVsbG8=", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp 2001-13-40",
    "2001-01-01", "!!int x", "!!float x", "!!null x", "!!bool x", "1:1", "1" + ":1" * 3000,
    "0x" + "f" * 5000, "0b1", "0o17", "9" * 5000, "1e400", ".nan", ".inf", "~", "'(1, 2)'", "'[1'",
    "\"__import__('os').mkdir('evil')\"", "'" + "(" * 300 + "'", "'" + "-" * 5000 + "1'", "'9' * 3",
    "'" + "9" * 5000 + "'", "'0x" + "f" * 5000 + "'", "'{1: 2}'", "'1 + 2'", "[" * 300, "{" * 300,
    "[" * 200 + "]" * 200, "{a: " * 200 + "1" + "}" * 200, "| \n  text\n", "*nothing", "&a [*a]", "\ttab",
    "%x", "@x", "`x", "'\\0'", '"\\0"', '"\\ud800"', '"\\x07"', "x" * 100_000, "[" + "1, " * 20_000 + "]",
    "!own x", "!!seq {}", "!!map []", "{? [1]: 2}", "{? {}: 2}", "{1: 2}", "{on: 2}", "{<<: 3}",
    "{<<: [1]}", "{<<: {a: 1}}", "{0x" + "f" * 5000 + ": 1}", "configs/../base.yaml", "base.yaml",
    "[base.yaml, base.yaml]", "x.yaml", ".",
)  # fmt: skip


def bomb(rng: Random) -> str:
    """Aliases of aliases: a few lines that stand for a great many values."""
    depth, width = rng.choice((3, 10, 25, 60)), rng.choice((2, 3, 9))
    inner, join = rng.choice((("[x]", "[{}]"), ("{{x: 1}}", "{{{}}}"), ("{{x: 1}}", "{{{{<<: [{}]}}}}")))
    lines = [f"A0: &a0 {inner.replace('{{', '{').replace('}}', '}')}"]
    for level in range(1, depth):
        parts = [f"*a{level - 1}"] * width
        if join == "{{{}}}":
            body = "{" + ", ".join(f"k{i}: {part}" for i, part in enumerate(parts)) + "}"
        else:
            body = join.replace("{{", "{").replace("}}", "}").replace("{}", ", ".join(parts))
        lines.append(f"A{level}: &a{level} {body}")
    return "\n".join([*lines, f"{rng.choice(KEYS[4:])}: *a{depth - 1}"])


def config_text(seed: int, text: str) -> str | bytes:
    """The config of this seed: bytes, lines, values or the tree are others."""
    rng = Random(f"config {seed}")
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    way = rng.choice(("bytes", "lines", "tree", "scalar", "scalar", "scalar", "bomb", "short"))
    if way == "bytes":
        return damaged(rng, text.encode())
    if way == "lines":
        other = rng.choice(
            (lines[rng.randrange(len(lines))], "  " + lines[at], lines[at].strip(), "- 1", "---", "...")
        )
        return "\n".join(
            rng.choice(([*lines[:at], other, *lines[at:]], lines[:at] + lines[at + 1 :], lines[:at]))
        )
    if way == "tree":
        return yaml.safe_dump(changed(rng, yaml.safe_load(text)))
    if way == "scalar":
        key = lines[at].partition(":")[0]
        return "\n".join([*lines[:at], f"{key}: {rng.choice(SCALARS)}", *lines[at + 1 :]])
    if way == "bomb":
        return bomb(rng)
    return "\n".join(f"{key}: {rng.choice(SCALARS)}" for key in ("VERSION: 2\n_BASE_", *rng.sample(KEYS, 2)))


def check_config(watch: Watch, name: str, file: Path, content: str | bytes) -> bool:
    """Whether a config is read; raises WrongError."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    cfg, error = watch.call(name, lambda: read_config(get_cfg(), str(file)))
    if error is not None:
        return False
    check_values(cfg, read_plainly(file))
    return True


class _WithTuples(yaml.SafeLoader):
    pass


_WithTuples.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node))
)


def read_plainly(file: Path) -> dict[str, Any]:
    """What PyYAML finds in a file, over what it finds in its bases."""
    content = yaml.load(file.read_text(encoding="utf-8"), _WithTuples)  # noqa: S506
    bases, merged = content.pop("_BASE_", []), {}
    for base in bases if isinstance(bases, list) else [bases]:
        merged.update(leaves(read_plainly(file.parent / base)))
    return {**merged, **leaves(content)}


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    return dict(_leaves(tree, prefix))


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@cache
def _defaults() -> dict[str, Any]:
    return leaves(get_cfg())


def check_values(cfg: CfgNode, given: dict[str, Any]) -> None:
    """Raise WrongError unless ``cfg`` has the given values and else the defaults, each of its type."""
    found, defaults = leaves(cfg), _defaults()
    if given.get("VERSION", 2) == 2:
        for key, value in {**defaults, **{k: v for k, v in given.items() if k in defaults}}.items():
            if key in found and not (alike(found[key], value) or alike(found[key], _decoded(value))):
                raise WrongError(f"{key} is {found[key]!r}; the file has {value!r}"[:500])
    for key, value in defaults.items():
        if key not in found:
            raise WrongError(f"{key} is lost")
        if not _of_kind(found[key], value):
            raise WrongError(f"{key} is a {type(found[key]).__name__}, not a {type(value).__name__}")


def _decoded(value: Any) -> Any:
    """What yacs makes of a text, which may be written as Python spells a value."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value


def _of_kind(value: Any, default: Any) -> bool:
    lists = isinstance(value, (list, tuple)) and isinstance(default, (list, tuple))
    return lists or type(value) is type(default) or value is None or default is None


def _seed_text(folder: Path) -> str:
    text = config(folder)
    (folder / "base.yaml").write_text(BASE)
    return text


def mutated(watch: Watch, folder: Path, seeds: range) -> None:
    """A pruned model's config with changes."""
    text = _seed_text(folder)
    for seed in seeds:
        name = f"YAML text {seed}"
        watch.judge(name, partial(check_config, watch, name, folder / "x.yaml", config_text(seed, text)))


_LEAVES = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=20),
    st.binary(max_size=9),
    st.dates(),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_LEAVES, inner, max_size=3),
    max_leaves=8,
)
_OF_KEY = {
    "SEED": st.integers(),
    "MODEL.WEIGHTS": st.text(),
    "SOLVER.BASE_LR": st.floats(),
    "MODEL.PRUNE": st.booleans(),
}


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A config of one to three keys with values of their types, mostly, or any others."""
    tree: dict[str, Any] = {"VERSION": 2}
    for key in draw(st.lists(st.sampled_from([k for k in KEYS if k != "_BASE_"]), min_size=1, max_size=3)):
        *above, last = key.split(".")
        node = tree
        for part in above:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[last] = draw(st.one_of(_OF_KEY.get(key, _VALUES), _VALUES))
    return tree


def generated(watch: Watch, folder: Path, seeds: range) -> None:
    """As many examples as there are seeds."""
    _seed_text(folder)

    @settings(REPRODUCIBLE, max_examples=len(seeds))
    @given(configs())
    def run(tree: dict[str, Any]) -> None:
        text = yaml.safe_dump(tree)
        name = f"YAML values {json.dumps(text)}"[:2000]
        watch.judge(name, partial(check_config, watch, name, folder / "y.yaml", text))

    run()
