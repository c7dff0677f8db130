"""The guides: their Python runs as it stands, and both languages say the same in code."""

from __future__ import annotations

import ast
import linecache
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "guides"
CHINESE = ".zh-CN.md"
PAGES = sorted(FOLDER.glob("*.md"))
ENGLISH = [page for page in PAGES if not page.name.endswith(CHINESE)]
FENCED = re.compile(r"^```python([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """What stands between ```python and ```; its first line is line ``line`` of the page."""

    code: str
    runs: bool
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [(match, match[1].strip()) for match in FENCED.finditer(text)]
    assert {note for _, note in found} <= {"", "no-run"}, page.name
    return [Block(m[2], not note, text.count("\n", 0, m.start()) + 2) for m, note in found]


def in_the_other_language(page: Path) -> Path:
    chinese = page.name.endswith(CHINESE)
    return page.with_name(
        page.name.removesuffix(CHINESE) + ".md" if chinese else page.name.removesuffix(".md") + CHINESE
    )


def compiled(page: Path, block: Block):
    padding = "\n" * (block.line - 1)  # so that a traceback names the line of the page
    source, name = padding + block.code, f"{page}, line {block.line}"
    linecache.cache[name] = (
        len(source),
        None,
        source.splitlines(keepends=True),
        name,
    )  # as a notebook's cells
    return compile(source, name, "exec")


@pytest.mark.parametrize("page", ENGLISH, ids=lambda page: page.stem)
def test_its_python_runs_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "guide"}
    for block in blocks(page):
        code = compiled(page, block)
        if block.runs:
            exec(code, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_first_line_leads_to_the_other_language(page: Path):
    other = in_the_other_language(page)
    assert other.exists() and f"]({other.name})" in page.read_text(encoding="utf-8").partition("\n")[0]


@pytest.mark.parametrize("page", ENGLISH, ids=lambda page: page.stem)
def test_both_languages_have_the_same_code(page: Path):
    """But for comments, which are for their readers."""
    here, there = (
        [(ast.dump(ast.parse(block.code)), block.runs) for block in blocks(p)]
        for p in (page, in_the_other_language(page))
    )
    assert here == there
