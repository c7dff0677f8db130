"""What setup.py declares is what d2prune/ imports: no more, no less."""

import ast
import runpy
import sys
from pathlib import Path
from unittest import mock

import setuptools

from tests.meta.test_import_direction import MODULES, ROOT, imports, tree

# Where the package on PyPI has another name than the module.
MODULE_OF = {"pillow": "PIL", "PyYAML": "yaml", "scikit-image": "skimage", "torch-pruning": "torch_pruning"}
# Not on PyPI under these names; found if there, else done without.
NOT_ON_PYPI = {"adet", "detectron2"}
IMPORTERS = {"import_module", "required", "_package_file"}


def declared() -> tuple[list[str], dict[str, list[str]]]:
    """``install_requires`` and ``extras_require`` as setup.py passes them."""
    with mock.patch.object(setuptools, "setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs["install_requires"], setup.call_args.kwargs["extras_require"]


def modules(requirements: list[str]) -> set[str]:
    names = {text.partition(">")[0].partition("<")[0].partition("=")[0].strip() for text in requirements}
    return {MODULE_OF.get(name, name) for name in names}


def required() -> set[str]:
    """Modules that `pip install .` brings."""
    return modules(declared()[0])


def extra(name: str) -> set[str]:
    """Modules that an extra adds."""
    return modules(declared()[1][name])


def imported(path: Path) -> set[str]:
    """Top-level modules from outside: import statements, and names given to a function that imports."""
    calls = [n for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and n.args]
    named = [c.args[0] for c in calls if ast.unparse(c.func).rpartition(".")[2] in IMPORTERS]
    texts = [node.value for node in named if is_text(node)]
    names = {name.partition(".")[0] for name in [*imports(path), *texts]}
    return names - sys.stdlib_module_names - {"d2prune"}


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_what_is_declared_is_what_is_imported():
    needed, extras = declared()
    brought = modules(
        [*needed, *(text for name in extras if name not in {"dev", "all"} for text in extras[name])]
    )
    found = set().union(*map(imported, MODULES)) - NOT_ON_PYPI
    assert found - brought == set(), "imported, but not declared"
    assert brought - found == set(), "declared, but not imported"


def test_all_has_every_extra():
    _, extras = declared()
    assert extras["all"] == sorted({text for name in extras if name != "all" for text in extras[name]})
