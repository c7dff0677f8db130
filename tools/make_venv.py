"""Make the virtual environment of `make setup`: python tools/make_venv.py DIRECTORY [PINS].

Where the Python that runs this already imports detectron2 or adet, the environment sees that
Python's packages through a .pth file (`--system-site-packages` would not, when it is itself an
environment); its torch, torchvision and numpy stay, since compiled extensions depend on them.
With PINS, a file of constraints that come before the usual ones, nothing of that Python is used.
"""

import importlib.util
import json
import re
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PINS = Path(__file__).parents[1] / "requirements" / "constraints.txt"
KEPT = ("torch", "torchvision", "numpy")


def importable(name: str) -> bool:
    """Whether `import name` works, tried in a process of its own; says why where it fails."""
    if importlib.util.find_spec(name) is None:
        return False
    trial = [sys.executable, "-c", f"import {name}"]
    done = subprocess.run(trial, capture_output=True, text=True)
    if done.returncode:
        print(f"{name} is there but does not import, so it is not used:\n{done.stderr}")
    return done.returncode == 0


def folders_of(names: list[str]) -> list[str]:
    """The folders to search for those packages and for all that is installed beside them."""
    specs = [importlib.util.find_spec(name) for name in names]
    sources = [str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin]
    sites = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    return list(dict.fromkeys(sites + sources))


def kept_pins() -> str:
    """Constraints that hold the packages which are already there at their present versions."""
    lines = []
    for name in KEPT:
        try:
            lines.append(f"{name}=={version(name)}\n")
        except PackageNotFoundError:
            continue
    return "".join(lines)


def pinned(line: str) -> str:
    """The package that a line of constraints is about, spelled as pip compares names; "" for a comment."""
    name = re.match(r"[\w.-]*", line)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def pins_with(first: Path | None) -> str:
    """The usual constraints; where ``first`` names a package, its line stands instead."""
    lines = PINS.read_text(encoding="utf-8").splitlines(keepends=True)
    firsts = first.read_text(encoding="utf-8").splitlines(keepends=True) if first else []
    taken = {pinned(line) for line in firsts}
    return "".join(firsts + [line for line in lines if pinned(line) not in taken])


def main(target: Path, first: Path | None = None) -> None:
    found = [] if first else [name for name in ("detectron2", "adet") if importable(name)]
    venv.create(target, with_pip=True)
    if found:
        python = next(target.glob("lib/python*/site-packages"), target / "Lib" / "site-packages")
        calls = "; ".join(f"site.addsitedir({json.dumps(path)})" for path in folders_of(found))
        (python / "chosen_python.pth").write_text(f"import site; {calls}\n", encoding="utf-8")
        print(f"{target} uses the {' and '.join(found)} of {sys.executable}")
    pins = kept_pins() if found else pins_with(first)
    (target / "constraints.txt").write_text(pins, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
