"""What an evaluation prints at its end."""

import numpy as np
import pytest

from fsdit.evaluation.report.terminal import summary
from fsdit.evaluation.results import Score
from tests.evaluation import results_example as example
from tests.evaluation.report.example_report import NAMES, ONE_TABLE, changed_score


def test_the_end_has_a_table_of_eight_lines_and_the_sentence_that_matters():
    results = example.results(np.random.default_rng(0), NAMES, (1, 5), (1.0, 3.0))
    results = changed_score(results, "top1", "samples", Score(0.814, 0.7597, 0.8682))
    results = changed_score(results, "near_copies", "samples", Score(0.0, 0.0, 0.028))
    *table, empty, sentence = summary(results).splitlines()
    assert len(table) <= 8 and not empty and "1-shot, guidance 3" in table[0]
    assert max(map(len, table)) < 90
    assert table[2].split() == [
        *("recognised", "0.814", "0.760", "to", "0.868"),
        *(f"{results.tables[0].scores['top1'][name].value:.3f}" for name in SHOWN),
        "higher",
    ]
    seen = next(each for each in results.tables if each.seen and each.shots == 1)
    assert table[3].split()[2] == f"{seen.scores['top1']['samples'].value:.3f}"
    assert sentence.startswith("From one image of a class that it has never seen, ")
    assert "81.4 %" in sentence and sentence.endswith(", and none copy an image that it was shown.")


SHOWN = ("real", "copied_support", "nearest_training")


@pytest.mark.parametrize("metric", ["top1", "near_copies", "frechet_distance"])
def test_scores_that_are_missing_are_left_out(metric):
    results = example.results(np.random.default_rng(0), NAMES, **ONE_TABLE)
    without = changed_score(results, metric, "samples", None)
    lines = summary(without).splitlines()
    assert len(lines) == len(summary(results).splitlines()) - 1
    assert "nan" not in lines[-1].lower()
