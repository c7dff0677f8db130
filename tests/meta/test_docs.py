"""The documents: their links lead somewhere, and no file tells where its author worked."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.each import each

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "patches/README.md"]
DOCUMENTS += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")
FENCED = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|root|tmp|farm)/")
LARGEST_TEXT = 1_000_000  # bytes


def relative_links(document: Path) -> list[str]:
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    return [link for link in LINK.findall(text) if not re.match(r"[a-z]+:|#", link)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_resolve(name: str):
    document = ROOT / name
    if not document.exists():
        pytest.skip(f"{name} is not written yet")
    broken = [
        link for link in relative_links(document) if not (document.parent / link.split("#")[0]).exists()
    ]
    assert broken == []


def project_files() -> list[Path]:
    """What git tracks, and what it would on the next `git add`."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and path.stat().st_size <= LARGEST_TEXT]


def test_no_machine_path():
    found = []
    for path in each(project_files()):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        lines = enumerate(text.splitlines(), start=1)
        found += [f"{path.relative_to(ROOT)}:{n}" for n, line in lines if MACHINE_PATH.search(line)]
    assert found == []
