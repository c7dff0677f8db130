"""The HTML report: one file, whole, honest, escaped, with every part the reader was promised."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from d2prune.core.plan.ranking import Sensitivity
from d2prune.errors import PruneError
from d2prune.report import Image, ImageRow, stage_table, verdict, write_report
from d2prune.report.html import charts, left_whole, lines, render
from tests.each import each
from tests.report.conftest import read

IMAGES = [ImageRow("a.jpg", (Image("ground truth", b"png-1"), Image("pruned", b"png-2")))]


class Page(HTMLParser):
    """Balanced tags, the attributes that could load something, and the text."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, html):
        super().__init__()
        self.open, self.links, self.text, self.tags = [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "srcset", "data"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def test_tags_are_balanced_and_nothing_is_loaded(report):
    html = render(read(report), IMAGES)
    page = Page(html)
    assert page.open == [] and not {"script", "link", "iframe"} & set(page.tags)
    assert all(link.startswith("data:image/png;base64,") for link in each(page.links))
    assert "url(" not in html and "@import" not in html and "://" not in html


def test_verdict_comes_first(report):
    text = Page(render(read(report))).text
    parts = [verdict(read(report)), "Before and after", "Widths", "Coverage", "What was asked for"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_how_it_was_chosen_is_shown(report):
    assert "How it was chosen" not in render(read(report))
    report["tried"] = [
        {"criterion": "fisher", "allocation": allocation, "loss": 1.5, "change": change}
        for allocation, change in (("global", 0.5), ("uniform", 0.75))
    ]
    report["curve"] = [
        {"reached": reached, "scores": {"bbox": ap}, "within": ap > 49}
        for reached, ap in ((0.0, 50.0), (0.25, 49.5), (0.5, 41.25))
    ]
    report["sensitivities"] = [
        {"group": "conv<1>", "units": 8, "kept": 4, "errors": [0.0, 0.25, 1.0]},
        {"group": "conv2", "units": 8, "kept": 8, "errors": [0.0, 4.0, 9.0]},
    ]
    html = render(read(report))
    page = Page(html)
    text = " ".join(page.text.split())
    assert page.open == [] and "globalo" not in text
    assert "fisher global 1.500 0.500 taken" in " ".join(re.sub(r"<[^>]+>", " ", html).split())
    assert "conv<1>: 8 → 4, 0.25" in text and "conv2: 8 whole, 0" in text
    assert "25.0%" in text and "41.2" in text


def test_the_dot_lies_on_the_curve():
    (line,) = lines([Sensitivity("a", 8, 6, (0.0, 0.5, 1.0))])
    assert (line.x, line.error) == (25, 0.25) and line.y == pytest.approx(20)
    assert line.path == "0.0,40.0 50.0,0.0 100.0,0.0"
    assert lines([Sensitivity("a", 8, 8, (0.0, 0.5, 1.0))])[0].y == 40


def test_figures_are_those_of_the_table(report):
    text = " ".join(Page(render(read(report))).text.split())
    for figure in each(re.findall(r"[\d.]+ [MG]|[\d.]+ ms|[−+×][\d.]+", stage_table(read(report)))):
        assert figure in text


def test_everything_from_outside_is_escaped(report):
    evil = "<script>alert(1)</script>&\"'"
    report["coverage"][0]["name"] = report["coverage"][2]["reason"] = report["base"] = evil
    report["environment"]["command"] = report["stages"][1]["name"] = evil
    report["request"]["protect"] = [evil]
    page = Page(render(read(report), [ImageRow(evil, (Image(evil, b""),))]))
    assert "script" not in page.tags and page.text.count(evil) >= 7


def test_left_whole_is_sorted_by_what_was_forgone(report):
    rows = left_whole(read(report).coverage)
    assert [row.name for row in rows] == ["head.conv", "backbone.conv2", "head.scale"]
    text = Page(render(read(report))).text
    text = text[text.index("Coverage") :]
    assert text.index("head.conv") < text.index("backbone.conv2") < text.index("backbone.conv1")


def test_every_layer_is_covered(report):
    text = Page(render(read(report))).text
    text = text[text.index("Coverage") :]
    for row in each(report["coverage"]):
        assert row["name"] in text and row["reason"] in text


def test_widths_keep_the_models_order(report):
    found = [(part.name, [row.name for row in part.rows]) for part in charts(read(report).coverage)]
    assert found == [("backbone", ["backbone.conv1", "backbone.conv2"]), ("head", ["head.conv"])]


def test_bars_are_to_scale(report):
    widths = re.findall(r'class="(before|after)" style="width:([\d.]+)%"', render(read(report)))
    assert widths[:4] == [
        ("before", "100.0"),
        ("after", "50.0"),
        ("before", "50.0"),
        ("after", "50.0"),
    ]


def test_images_are_inside(report):
    html = render(read(report), IMAGES)
    assert base64.b64encode(b"png-2").decode() in html and "ground truth" in html
    assert "Example images" not in render(read(report))


@pytest.mark.parametrize(
    ("proof", "word"),
    [(None, "not proved"), ({"exact": False, "reason": "the control did not err"}, "inconclusive")],
)
def test_a_weak_proof_is_no_good_sign(report, proof, word):
    report["proof"] = proof and report["proof"] | proof
    html = render(read(report))
    assert f"<strong>{word}</strong>" in html and "<strong>exact</strong>" not in html
    assert re.search(r'class="tile warn">\s*<span class="label">Proof', html)


def test_unmeasured_ap_is_no_figure(report):
    for stage in report["stages"]:
        stage |= {"mask_ap": None, "box_ap": None, "latency_ms": None}
    text = Page(render(read(report))).text
    assert "AP not evaluated" in text and "—" in text and "None" not in text and "nan" not in text


def test_an_empty_report_still_renders(report):
    report |= {"coverage": [], "stages": []}
    assert Page(render(read(report))).open == []


def test_small_and_dark_screens_are_provided_for(report):
    html = render(read(report))
    assert "prefers-color-scheme: dark" in html and "max-width" in html and "viewport" in html


def test_written_whole_or_not_at_all(report, tmp_path):
    path = tmp_path / "report.html"
    write_report(read(report), path)
    before = path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_report(replace(read(report), coverage=None), path)
    assert path.read_text(encoding="utf-8") == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_an_unwritable_place_is_named(report, tmp_path):
    with pytest.raises(PruneError, match="absent.report.html' can't be written: No such file"):
        write_report(read(report), tmp_path / "absent" / "report.html")
