"""The table of a cell: all metrics of its samples and of their baselines.

The same functions score every image set. Distances are those of the critic's features, and for
small images those of the pixels beside them.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int

from fsdit.config import EvaluationConfig
from fsdit.evaluation.comparison import Comparison, RealImages
from fsdit.evaluation.figures.blas import one_blas_thread
from fsdit.evaluation.metrics import BY_PIXELS, METRICS
from fsdit.evaluation.protocol import SEEN, Cell
from fsdit.evaluation.results import Table
from fsdit.evaluation.scoring.classifiers import classifier_scores
from fsdit.evaluation.scoring.episodes import (
    Perceptual,
    class_fidelity,
    support_copies,
    training_copies,
    variety,
)
from fsdit.evaluation.scoring.scores import Scores
from fsdit.evaluation.scoring.sets import inception_scores, set_fidelity


def score_cell(
    comparison: Comparison,
    by_pixels: Sequence[Comparison],
    cell: Cell,
    training: RealImages | None,
    protocol: EvaluationConfig,
    perceptual: Perceptual | None,
) -> tuple[Table, Int[np.ndarray, "N R"] | None]:
    """The table of a cell, and the index of the training image nearest to each sample.

    by_pixels: the same comparison by pixels, or none. training: the images of the training split;
    without them (None) there is no nearest one.
    """
    inception: dict = {}
    memorised, far, nearest = {}, {}, None
    # The classifiers are fitted on the host, while programs of the other metrics are compiled.
    # Both set the threads of BLAS, which are those of the process, so they are set around both.
    with one_blas_thread(), ThreadPoolExecutor(1) as thread:
        classified = thread.submit(classifier_scores, comparison, protocol.ways)
        if protocol.inception:
            inception = inception_scores(comparison, Path(protocol.inception))
        retrieved, top = class_fidelity(comparison)
        varied, pairwise = variety(comparison, perceptual)
        copied, near = support_copies(comparison)
        if training:
            memorised, far, nearest = training_copies(comparison, training)
        of_sets = set_fidelity(comparison, jackknife=True)
        of_pixels = [pixel_scores(other) for other in by_pixels]
    scores = {
        **of_sets,
        **inception,
        **retrieved,
        **classified.result(),
        **varied,
        **copied,
        **memorised,
    }
    for found in of_pixels:
        scores |= found
    names = comparison.real.split.classes
    by_class = {
        metric: {names[c]: float(values[comparison.class_id == c].mean()) for c in cell.classes}
        for metric, values in {**top, **pairwise, **near, **far}.items()
    }
    table = Table(
        split=cell.split,
        seen=cell.split == SEEN,
        shots=cell.shots,
        guidance_scale=cell.sampling.guidance_scale,
        episodes=cell.num_episodes,
        samples=cell.num_samples,
        scores=scores,
        by_class=by_class,
    )
    return table, nearest


def pixel_scores(comparison: Comparison) -> Scores:
    """The scores of a comparison by pixels, under the names of METRICS that begin with pixel_."""
    found = {
        **set_fidelity(comparison, jackknife=True, kernels=False),
        **class_fidelity(comparison)[0],
        **variety(comparison, None)[0],
        **support_copies(comparison)[0],
    }
    named = {BY_PIXELS + metric: sets for metric, sets in found.items()}
    return {metric: named[metric] for metric in METRICS if metric in named}
