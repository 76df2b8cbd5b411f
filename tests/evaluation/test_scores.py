"""Intervals of scores: they count classes, and are honest where nothing, or everything, is hit."""

import numpy as np
import pytest

from fsdit.evaluation.scoring.scores import score, score_episodes


def scores(values, class_id, metric="top1"):
    return score_episodes({metric: {"samples": values}}, class_id)[0][metric]["samples"]


def test_more_episodes_of_the_same_classes_do_not_narrow_the_interval():
    values = np.random.default_rng(0).uniform(size=30)
    once = scores(values, np.arange(30))
    again = scores(np.tile(values, 4), np.tile(np.arange(30), 4))
    assert again == once and once.low < once.value < once.high
    as_if_independent = score(np.tile(values, 4), share=True)
    assert as_if_independent.high - as_if_independent.low < 0.7 * (once.high - once.low)


@pytest.mark.parametrize("classes", [2, 20, 129])
@pytest.mark.parametrize("rounds", [1, 3])
def test_none_of_n_and_all_of_n_have_an_interval_with_the_classes_as_n(classes, rounds):
    class_id = np.tile(np.arange(classes), rounds)
    none, every = (scores(np.full(len(class_id), x), class_id) for x in (0.0, 1.0))
    width = 1 - 0.025 ** (1 / classes)  # Clopper and Pearson's for no success
    assert (none.low, none.value, every.value, every.high) == (0, 0, 1, 1)
    assert none.high == pytest.approx(width) and every.low == pytest.approx(1 - width)


def test_an_interval_without_width_of_what_is_no_share_is_left_out():
    distance = scores(np.zeros(5), np.arange(5), "support_distance")
    assert (distance.value, distance.low, distance.high) == (0, None, None)


def test_one_class_has_no_interval():
    assert scores(np.array([0.0, 0.5, 1.0]), np.zeros(3, int)).low is None
