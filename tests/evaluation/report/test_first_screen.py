"""What a reader of the page sees first: a sentence, a picture and three figures."""

import dataclasses

import numpy as np
import pytest

from fsdit.evaluation.report import write as reports
from fsdit.evaluation.results import Score
from tests.evaluation import results_example as example
from tests.evaluation.report.example_report import NAMES, ONE_TABLE, changed_score, write, written
from tests.evaluation.report.page_reader import read_page

pytestmark = pytest.mark.medium


def key_figures(page):
    [shown] = page.all("ul", **{"class": "figures"})
    return [each.text for each in shown.all("li")]


def test_the_first_screen_is_made_of_the_first_table(tmp_path):
    results = example.results(np.random.default_rng(0), NAMES, shots=(1,), guidance=(3.0,))
    for metric, image_set, score in (
        ("top1", "samples", Score(0.951, 0.93, 0.962)),
        ("top1", "real", Score(0.972)),
        ("top1", "nearest_training", Score(0.25)),
        ("near_copies", "samples", Score(0.0, 0.0, 0.028)),
        ("near_copies", "real", None),
        ("frechet_distance", "samples", None),
        ("pairwise_distance", "samples", Score(0.5)),
        ("pairwise_distance", "real", Score(0.25)),
    ):
        results = changed_score(results, metric, image_set, score)
    page = write(tmp_path, results)
    [sentence] = page.all("p", **{"class": "lead"})
    assert sentence.text == (
        "From one image of a class that it has never seen, the model makes samples of which 95.1 % "
        "are recognised as that class (real images: 97.2 %; nearest training images: 25.0 %), "
        "and none copy an image that it was shown."
    )
    recognised, copied, varied = key_figures(page)
    assert recognised.startswith("95.1 % ") and "95 %: 93.0 % to 96.2 %" in recognised
    assert "higher is better; real images: 97.2 %" in recognised
    assert copied.startswith("0.0 % ") and copied.endswith("lower is better95 %: 0.0 % to 2.8 %")
    assert varied.startswith("0.500 ") and "real images: 0.250" in varied


def test_the_first_picture_has_captions_and_the_nearest_training_images(tmp_path):
    _, page = written(tmp_path)
    [grid] = page.all("div", **{"class": "grid"})
    head, *rows = [
        each for each in grid.all("div") if each.attributes.get("class", "")[:3] == "row"
    ]
    captions = [each.text for each in head.all("span") if each.text]
    assert captions == ["supports, which the model is shown", "samples", "nearest training image"]
    assert [row.all("span")[0].text for row in rows] == NAMES
    for row, name in zip(rows, NAMES, strict=True):
        expected = [f"supports, {name}", f"samples, {name}", f"nearest training images, {name}"]
        assert [img.attributes["alt"] for img in row.all("img")] == expected


def test_without_training_images_there_is_no_column_of_them(tmp_path):
    rng = np.random.default_rng(0)
    results = example.results(rng, NAMES, **ONE_TABLE)
    pictures = [
        dataclasses.replace(each, nearest_training=each.samples[:0], real=each.samples[:0])
        for each in example.pictures(rng, results)
    ]
    reports.write(tmp_path, results, pictures)
    page = read_page((tmp_path / "report.html").read_text("utf-8"))
    [grid] = page.all("div", **{"class": "grid"})
    assert len(grid.all("img")) == 2 * len(NAMES) and "nearest" not in grid.text
