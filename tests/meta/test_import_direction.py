"""The architecture, held by reading the source: who imports whom, and what no module may hold."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.each import each

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "d2prune"
MODULES = each(sorted(PACKAGE.rglob("*.py")))
TOOLS = sorted((ROOT / "tools").glob("*.py"))

# A part imports only parts of its own rank or a lower one; the package's __init__ is the top.
RANKS = {
    "errors": 0,
    "files": 0,
    "optional": 0,
    "patching": 0,
    "config": 0,
    "core": 1,
    "modeling": 2,
    "adapters": 2,
    "data": 2,
    "rebuild": 3,
    "pruning": 4,
    "traceable": 5,
    "checkpoint": 5,
    "report": 6,
    "export": 6,
    "engine": 7,
    "lazy": 8,
    "fork": 8,
    "recipes": 8,
    "benchmarks": 8,
    "__init__": 9,
}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
DEVICE = re.compile(r"(cuda|cpu|mps|xpu)(:\d+)?")
# Where `map_location="cpu"` is right, with the reason; keys are beginnings of paths in d2prune/.
CPU_READERS = {
    "checkpoint": "a file is read into host memory first, whatever device the model is on",
}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def short(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part(path: Path) -> str:
    """The first name below d2prune: a folder, a module, or __init__."""
    return Path(short(path)).parts[0].removesuffix(".py")


def package_of(path: Path) -> list[str]:
    return list(path.parent.relative_to(ROOT).parts)


def imports(path: Path) -> Iterator[str]:
    """Full dotted names of everything imported, also inside functions; relative ones resolved."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = package_of(path)
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def target(name: str) -> str | None:
    """The part of d2prune that an import reaches, None where it reaches outside."""
    first, *rest = name.split(".")
    if first != "d2prune":
        return None
    known = rest and ((PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").exists())
    return rest[0] if known else "__init__"


def breaches(rule: Callable[[Path, str], bool]) -> list[str]:
    pairs = [(path, name) for path in MODULES for name in imports(path)]
    return [f"{short(path)} imports {name}" for path, name in pairs if rule(path, name)]


def test_every_part_has_a_rank():
    assert {part(path) for path in MODULES} <= RANKS.keys()


def test_parts_import_only_downwards():
    def upwards(path: Path, name: str) -> bool:
        reached = target(name)
        return reached is not None and RANKS[reached] > RANKS[part(path)]

    assert breaches(upwards) == []


def test_core_knows_neither_detectron2_nor_the_rest():
    def foreign(path: Path, name: str) -> bool:
        outside = name.split(".")[0] in {"detectron2", "adet", "yacs"}
        return part(path) == "core" and (outside or target(name) not in {None, "core", "errors"})

    assert breaches(foreign) == []


# Where torch-pruning is imported, with the reason.
TORCH_PRUNING = {
    "benchmarks/peer.py": "is compared with",
    "core/plan/torch_pruning_criteria.py": "scores, where its name is given",
}


def test_torch_pruning_is_only_imported_to_be_compared_with_and_to_score():
    def used(path: Path, name: str) -> bool:
        return name.split(".")[0] == "torch_pruning" and short(path) not in TORCH_PRUNING

    assert breaches(used) == []


def test_scoring_imports_torch_pruning_when_it_is_asked_for():
    module = tree(PACKAGE / "core/plan/torch_pruning_criteria.py")
    assert not [n for n in module.body if "torch_pruning" in ast.unparse(n) and is_import(n)]


def test_config_is_a_leaf():
    def beyond(path: Path, name: str) -> bool:
        return part(path) == "config" and (
            target(name) not in {None, "config", "errors"}
            or name.split(".")[0] in {"torchvision", "torch_pruning", "adet"}
        )

    assert breaches(beyond) == []


def test_no_module_has_a_name_that_says_nothing():
    assert [short(path) for path in MODULES if BANNED_NAMES & set(path.with_suffix("").parts)] == []


def holds_text(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Constant) and isinstance(n.value, str) for n in ast.walk(node))


def asks_architecture(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        named = [side for side in sides if "META_ARCHITECTURE" in ast.unparse(side)]
        return bool(named) and any(holds_text(side) for side in sides if side not in named)
    if isinstance(node, ast.Match):
        return "META_ARCHITECTURE" in ast.unparse(node.subject)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        strings = node.func.attr in {"startswith", "endswith"}
        return strings and "META_ARCHITECTURE" in ast.unparse(node.func.value)
    return False


def test_only_adapters_ask_for_the_architecture():
    outside = [path for path in MODULES if part(path) != "adapters"]
    found = [
        f"{short(path)}:{node.lineno}"
        for path in outside
        for node in ast.walk(tree(path))
        if asks_architecture(node)
    ]
    assert found == []


def is_device(node: ast.AST | None) -> bool:
    value = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
    return isinstance(value, str) and DEVICE.fullmatch(value) is not None


def reads_to_cpu(path: Path, keyword: ast.keyword) -> bool:
    allowed = short(path).startswith(tuple(CPU_READERS))
    return allowed and keyword.arg == "map_location" and ast.unparse(keyword.value) == "'cpu'"


def wires_device(path: Path, node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if method == "cuda":
            return True
        if method in {"startswith", "endswith"}:  # asking which device it is
            return False
        keywords = [k.value for k in node.keywords if not reads_to_cpu(path, k)]
        return any(is_device(value) for value in [*node.args, *keywords])
    if isinstance(node, ast.arguments):
        return any(is_device(value) for value in [*node.defaults, *node.kw_defaults])
    return isinstance(node, ast.Assign | ast.AnnAssign) and is_device(node.value)


def test_no_device_is_hard_wired():
    found = [
        f"{short(path)}:{getattr(node, 'lineno', '?')}"
        for path in MODULES
        for node in ast.walk(tree(path))
        if wires_device(path, node)
    ]
    assert found == []


# They run before there is a d2prune to call.
INSTALLERS = {"install_detectron2.py", "make_venv.py"}


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.name)
def test_tools_are_thin(path: Path):
    """They parse, call and print; whatever else they do belongs into the package."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= (90 if path.name in INSTALLERS else 60)
