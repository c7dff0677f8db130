"""Install Detectron2 for the Python that runs this, unless it imports one already. Safe to repeat.

A Detectron2 that imports (official, a fork, a source tree) is used and never overwritten.
AdelaiDet is only looked for, never installed.
"""

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements"
# The wheel is tagged CPython 3.10, but its Python code is all it needs: see `trim`.
ANY_PYTHON = "--no-deps --only-binary=:all: --python-version 3.10".split()
SHOW = """
import importlib, sys
found, package = importlib.import_module(sys.argv[1]), sys.argv[1].split(".")[0]
print("found", found.__file__, getattr(sys.modules[package], "__version__", "of unknown version"))
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)


def pip_install(*arguments: object) -> None:
    done = run("-m", "pip", "install", "-qq", *arguments)
    if done.returncode:
        sys.exit(f"pip could not install what Detectron2 needs:\n{done.stdout}{done.stderr}")


def find(module: str) -> tuple[str, str]:
    """The file and the version of a module that imports, else "" and why it does not."""
    done = run("-c", SHOW, module)
    if done.returncode:
        return "", done.stderr.strip().splitlines()[-1]
    _, file, version = done.stdout.strip().splitlines()[-1].split(" ", 2)
    return file, version


def trim(staged: Path, info: Path) -> None:
    """Leave out what only does harm.

    That is compiled code for another Python and torch (Detectron2 does without), a stray top-level
    package `tools`, and the demand for numpy<2, which pip would complain about for ever.
    """
    for path in (staged / "detectron2").glob("_C.*"):
        path.unlink()
    rows = (info / "RECORD").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [row for row in rows if not row.startswith(("tools/", "detectron2/_C."))]
    (info / "RECORD").write_text("".join(kept), encoding="utf-8")
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    metadata = metadata.replace("Requires-Dist: numpy<2\n", "Requires-Dist: numpy\n")
    (info / "METADATA").write_text(metadata, encoding="utf-8")


def install() -> None:
    """Stage beside the target and rename, so that an interrupted run leaves no half package."""
    site = Path(sysconfig.get_path("purelib"))
    pip_install("-r", REQUIREMENTS / "detectron2-deps.txt")
    with tempfile.TemporaryDirectory(dir=site) as folder:
        hashed = ["--require-hashes", "-r", REQUIREMENTS / "detectron2.txt"]
        pip_install(*ANY_PYTHON, "--target", folder, *hashed)
        staged = Path(folder)
        info = next(staged.glob("*.dist-info"))
        trim(staged, info)
        shutil.rmtree(site / info.name, ignore_errors=True)
        info.rename(site / info.name)
        (staged / "detectron2").rename(site / "detectron2")


def main() -> None:
    file, version = find("detectron2.modeling")
    if file:
        done = "was already there and is left as it is"
    elif "No module named 'detectron2'" in version:
        install()
        (file, version), done = (
            find("detectron2.modeling"),
            "installed (sal-detectron2, hash checked)",
        )
    if not file:
        sys.exit(f"{sys.executable} can't import its Detectron2: {version}\nMend it or remove it.")
    print(f"Detectron2 {version}: {done}; {Path(file).parents[1]}")
    file, version = find("adet.modeling")
    absent = "AdelaiDet: not there (it is optional); d2prune's own models are used"
    print(f"AdelaiDet {version}: {Path(file).parents[1]}" if file else absent)


if __name__ == "__main__":
    main()
