"""The page of a report holds every score, class and picture, and refers to nothing outside."""

import base64
import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from fsdit.evaluation.metrics import METRICS
from fsdit.evaluation.report import write as reports
from fsdit.evaluation.results import IMAGE_SETS, Score, read_results
from tests.evaluation import results_example as example
from tests.evaluation.report.example_report import (
    NAMES,
    ONE_TABLE,
    changed_score,
    write,
    written,
)
from tests.evaluation.report.page_reader import read_page

pytestmark = pytest.mark.medium

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src='x' onerror=alert(1)>",
    "$\\frac{1}{",
    "{{ 7*7 }}",
]
DASH = "\N{EN DASH}"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """(directory, results, page) with several shots and guidance scales."""
    directory = tmp_path_factory.mktemp("full")
    return directory, *written(directory, shots=(1, 5), guidance=(1.0, 3.0))


def test_the_page_holds_every_score_of_the_results(full):
    directory, _, page = full
    results = json.loads((directory / "results.json").read_text())
    count = 0
    for table in read_results(directory / "results.json").tables:
        [shown] = page.all("table", data_table=table.name)
        for metric, scores in table.scores.items():
            [line] = shown.all("tr", data_metric=metric)
            for name, score in scores.items():
                [cell] = line.all("td", data_set=name)
                bounds = [] if score.low is None else [score.low, score.high]
                assert cell.numbers == [score.value, *bounds]
                count += 1
    assert count == sum(
        len(sets) for table in results["tables"] for sets in table["scores"].values()
    )
    assert count == sum(len(t.all("data")) > 0 for t in page.all("td") if in_score_table(t))


def in_score_table(element):
    while element.tag != "table":
        element = element.parent
    return "data-table" in element.attributes


def test_each_figure_on_the_page_is_the_rounded_score(full):
    _, _, page = full
    figures = page.all("data")
    assert len(figures) > 1000
    for figure in figures:
        shown = figure.text.replace("\N{MINUS SIGN}", "-")
        places = len(shown.partition(".")[2])
        assert float(shown) == pytest.approx(
            float(figure.attributes["value"]), abs=0.51 / 10**places
        )


def test_each_metric_shows_which_direction_is_better(full):
    _, results, page = full
    arrows = {"higher": "↑", "lower": "↓", "real": "≈"}
    [shown] = page.all("table", data_table=results.tables[0].name)
    groups = []
    for body in shown.all("tbody"):
        group, *lines = body.all("tr")
        groups.append(group.text.strip())
        for line in lines:
            metric = METRICS[line.attributes["data-metric"]]
            assert metric.group == groups[-1]
            assert line.all("th")[0].text == f"{metric.label}\xa0{arrows[metric.better]}"
    assert groups == list(dict.fromkeys(metric.group for metric in METRICS.values()))


def test_every_class_stands_in_the_page_with_its_figures(full):
    _, results, page = full
    for table in results.tables:
        [shown] = page.all("table", data_classes=table.name)
        for metric, values in table.by_class.items():
            for name, value in values.items():
                [line] = shown.all("tr", data_class=name)
                assert line.children[0].text == name
                [cell] = line.all("td", data_metric=metric)
                assert cell.numbers == [value]


def test_missing_scores_show_a_dash_and_nan_shows_nan(tmp_path):
    results = example.results(np.random.default_rng(0), NAMES, **ONE_TABLE)
    results = changed_score(results, "top1", "other_class", None)
    results = changed_score(results, "top1", "copied_support", Score(math.nan))
    results = changed_score(results, "near_copies", "samples", Score(math.nan))
    results.tables[0].by_class["top1"] |= {"ant": math.nan, "bee": math.inf}
    page = write(tmp_path, results)
    [shown] = page.all("table", data_table=results.tables[0].name)
    [line] = shown.all("tr", data_metric="top1")
    assert [cell.attributes["data-set"] for cell in line.all("td")] == list(IMAGE_SETS)
    cells = {cell.attributes["data-set"]: cell for cell in line.all("td")}
    assert cells["other_class"].text == DASH and not cells["other_class"].numbers
    assert cells["copied_support"].text == "NaN"
    assert not shown.all("tr", data_metric="lpips")  # was not computed at all
    [shown] = page.all("table", data_classes=results.tables[0].name)
    for name, text in (("ant", "NaN"), ("bee", "∞")):
        [line] = shown.all("tr", data_class=name)
        assert line.all("td", data_metric="top1")[0].text == text
    [sentence] = page.all("p", **{"class": "lead"})
    assert "are recognised as that class (real images: " in sentence.text
    assert "copy" not in sentence.text and "nan" not in sentence.text.lower()
    [figures] = page.all("ul", **{"class": "figures"})
    assert len(figures.all("li")) == 3


def test_the_page_refers_to_nothing_outside_itself(full):
    directory, _, page = full
    text = (directory / "report.html").read_text("utf-8")
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert not page.all("script") and not page.all("link")
    for element in page.every():
        assert not {"srcset", "action", "background", "onload"} & element.attributes.keys()
        assert element.attributes.get("href", "#")[0] == "#"
        if (source := element.attributes.get("src")) is not None:
            kind, _, content = source.partition(";base64,")
            content = base64.b64decode(content, validate=True)
            if kind == "data:image/svg+xml":
                svg = content.decode()
                assert "<script" not in svg and "<image" not in svg
                assert all(found[0] == "#" for found in re.findall(r'href="([^"]*)"', svg))
                assert all(found[0] == "#" for found in re.findall(r"url\(([^)]*)\)", svg))
            else:
                assert kind in ("data:image/png", "data:image/webp")
                Image.open(io.BytesIO(content)).verify()
    anchors = {e.attributes["href"][1:] for e in page.all("a")}
    assert anchors == {e.attributes["id"] for e in page.all("section")}


def test_names_cannot_become_markup(tmp_path):
    _, tame = written(tmp_path / "tame", NAMES[: len(HOSTILE)])
    results = example.results(np.random.default_rng(0), HOSTILE, **ONE_TABLE)
    results = dataclasses.replace(results, name=HOSTILE[0], critic=HOSTILE[1])
    page = write(tmp_path / "hostile", results)
    assert [e.tag for e in page.every()] == [e.tag for e in tame.every()]
    assert page.all("h1")[0].text.startswith(HOSTILE[0] + ": ")
    titles = [article.all("h4")[0].text for article in page.all("article")]
    assert set(titles) == set(HOSTILE)
    for name in HOSTILE:
        assert len(page.all("tr", data_class=name)) == len(results.tables)


def test_small_pictures_are_embedded_exactly(tmp_path):
    rng = np.random.default_rng(0)
    results = example.results(rng, ["ant"], **ONE_TABLE)
    pictures = example.pictures(rng, results)
    reports.write(tmp_path, results, pictures)
    page = read_page((tmp_path / "report.html").read_text("utf-8"))
    [strip] = page.all("article")[0].all("img", alt="5 images: supports")
    image = Image.open(io.BytesIO(base64.b64decode(strip.attributes["src"].partition(",")[2])))
    shades, alpha = np.asarray(image.convert("LA")).transpose(2, 0, 1)
    np.testing.assert_array_equal(shades[alpha > 0], pictures[0].supports.swapaxes(0, 1).ravel())


def test_large_colour_pictures_are_embedded_small(tmp_path):
    rng = np.random.default_rng(0)
    results = example.results(rng, ["ant", "bee"], **ONE_TABLE)
    reports.write(tmp_path, results, example.pictures(rng, results, size=224, channels=3))
    page = read_page((tmp_path / "report.html").read_text("utf-8"))
    sources = [img.attributes["src"] for a in page.all("article") for img in a.all("img")]
    assert len(sources) == 2 * 2 * 4  # tables, classes, strips
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert max(map(len, sources)) < 40_000


def test_only_sections_with_content_are_shown(full, tmp_path):
    check_sections(full[2], seen=2, charts=2)
    check_sections(written(tmp_path)[1], seen=1, charts=0)


def check_sections(page, seen, charts):
    ids = [section.attributes["id"] for section in page.all("section")]
    expected = ["scores", "seen", "samples", "classes", "plane", "guidance", "about", "glossary"]
    assert ids == [name for name in expected if name != "guidance" or charts]
    [beside] = page.all("section", id="seen")
    assert len(beside.all("table")) == seen
    if charts:
        [section] = page.all("section", id="guidance")
        assert len(section.all("h3")) == charts
        assert len(section.all("img")) == charts * (len(METRICS) - 2)  # two were not computed


def test_settings_and_meanings_are_on_the_page(full):
    _, _, page = full
    tables = page.all("table", **{"class": "settings"})
    lines = [tr for table in tables for tr in table.all("tr")]
    shown = {tr.all("th")[0].text: tr.all("td")[0].text for tr in lines}
    assert shown["model"] == "1.81 million parameters" and shown["versions"] == "jax 0.10.2"
    assert shown["config.evaluation.shots"] == "1, 5"
    assert shown["config.evaluation.critic"] == "auto" and shown["critic"] == "pixels"
    assert shown["config.sampling.num_steps"] == "20"
    [glossary] = page.all("dl", **{"class": "glossary"})
    titles = {span.attributes["title"] for span in page.all("span", **{"class": "term"})}
    for metric in METRICS.values():
        assert metric.meaning in glossary.text
    assert titles == {
        m.meaning for name, m in METRICS.items() if name not in ("lpips", "inception_distance")
    }
