"""Writes the report of an example, and reads its page."""

import dataclasses

import numpy as np

from fsdit.evaluation.report import write as reports
from tests.evaluation import results_example as example
from tests.evaluation.report.page_reader import read_page

NAMES = ["ant", "bee", "cat", "dog", "eel"]
ONE_TABLE = {"shots": (5,), "guidance": (3.0,)}  # plus the table of the seen classes


def write(directory, results):
    reports.write(directory, results, example.pictures(np.random.default_rng(1), results))
    return read_page((directory / "report.html").read_text("utf-8"))


def written(directory, names=NAMES, **shape):
    results = example.results(np.random.default_rng(0), names, **(shape or ONE_TABLE))
    return results, write(directory, results)


def changed_score(results, metric, image_set, score):
    """Return the results with another score in the first table; None removes the score."""
    first = results.tables[0]
    scores = {name: dict(sets) for name, sets in first.scores.items()}
    scores[metric][image_set] = score
    if score is None:
        del scores[metric][image_set]
    first = dataclasses.replace(first, scores=scores)
    return dataclasses.replace(results, tables=(first, *results.tables[1:]))
