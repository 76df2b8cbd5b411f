"""The classes of a page: ranked where each has enough samples, counted where it has few."""

import dataclasses

import numpy as np
import pytest

from fsdit.evaluation.figures.uncertainty import exact_interval
from fsdit.evaluation.results import Score
from tests.evaluation import results_example as example
from tests.evaluation.report.example_report import ONE_TABLE, changed_score, write

pytestmark = pytest.mark.medium


def test_classes_stand_from_best_to_worst_and_each_once(tmp_path):
    names = [f"class {i}" for i in range(12)]
    results = with_samples(example.results(np.random.default_rng(0), names, **ONE_TABLE), 20)
    # Classes rank by top-1; ties rank by how near the support distance is to real images'.
    results = changed_score(results, "support_distance", "real", Score(5.0))
    by_class = results.tables[0].by_class
    by_class["top1"] = dict.fromkeys(names, 0.5) | {"class 7": 1.0, "class 3": 0.0}
    by_class["support_distance"] = {name: 5.0 + i for i, name in enumerate(names)}
    by_class["support_distance"]["class 9"] = 4.9
    del by_class["top1"]["class 4"]
    page = write(tmp_path, results)
    [section] = page.all("section", id="samples")
    shown = [article.all("h4")[0].text for article in section.all("article")][: len(names)]
    expected = [7, 0, 9, 1, 2, 5, 6, 8, 10, 11, 3, 4]
    ranked = [f"class {i}" for i in expected]
    # The page shows the best four, then the worst four from the worst on, and folds the others.
    assert shown == [*ranked[:4], *ranked[:-5:-1], *ranked[4:-4]]
    folded = [a.all("h4")[0].text for d in section.all("details") for a in d.all("article")]
    assert folded[:4] == ranked[4:-4]


def with_samples(results, each):
    """Return the results with so many samples of each class in the first table."""
    first = results.tables[0]
    first = dataclasses.replace(first, samples=each * first.classes)
    return dataclasses.replace(results, tables=(first, *results.tables[1:]))


@pytest.mark.parametrize(("each", "ranked"), [(2, False), (20, True)])
def test_classes_with_few_samples_are_counted_and_not_ranked(tmp_path, each, ranked):
    names = [f"class {i:02}" for i in range(12)]
    results = with_samples(example.results(np.random.default_rng(0), names, **ONE_TABLE), each)
    results.tables[0].by_class["top1"] = {n: i % 3 / 2 for i, n in enumerate(names)}
    page = write(tmp_path, results)
    [section] = page.all("section", id="samples")
    shown = [article.all("h4")[0].text for article in section.all("article")][: len(names)]
    assert sorted(shown) == names
    first, *_ = section.all("article")
    assert f"top-1 retrieval {each if ranked else 0} of {each}" in first.text
    [section] = page.all("section", id="classes")
    counts = section.all("table", **{"class": "counts"})
    lines = [line.all("th")[0].text for line in counts[0].all("tr")[1:]]
    if ranked:
        assert shown[0] == "class 02" and "Best classes" in page.text
        assert lines[0] == "8 of 8"  # of the second table
        [line] = page.all("table", data_classes=results.tables[0].name)[0].all(
            "tr", data_class="class 01"
        )
        value, low, high = line.all("td", data_metric="top1")[0].numbers
        assert (value, low, high) == (0.5, *exact_interval(0.5, 20))
    else:
        assert "Best classes" not in page.text and "Worst classes" not in page.text
        assert lines == ["2 of 2", "1 of 2", "0 of 2"]
        assert [line.numbers for line in counts[0].all("tr")[1:]] == [[4], [4], [4]]
