"""Scores change in the right direction for samples that are real images with a known defect."""

import dataclasses

import numpy as np
import pytest

from fsdit.config import Config, DataConfig, EvaluationConfig, SamplingConfig
from fsdit.data.layout import read_dataset_info
from fsdit.data.readers import split_images
from fsdit.evaluation.comparison import (
    ImageSet,
    compare,
    nearest_to_supports,
    read_real_images,
)
from fsdit.evaluation.critics.critic import PIXELS
from fsdit.evaluation.critics.lpips import load_lpips
from fsdit.evaluation.protocol import make_cells
from fsdit.evaluation.scoring.classifiers import classifier_scores
from fsdit.evaluation.scoring.episodes import class_fidelity, variety
from fsdit.evaluation.scoring.sets import halves, inception_scores
from fsdit.evaluation.tables import score_cell
from tests.evaluation.synthetic import blurred
from tests.models.pretrained import lpips_original

pytestmark = pytest.mark.medium

PROTOCOL = EvaluationConfig(
    critic="pixels", classes=20, samples_per_episode=4, episodes_per_class=1
)


@pytest.fixture(scope="module")
def scored(glyphs):
    """(table of good samples, function that scores the real images after an edit of them)."""
    data = DataConfig(dataset_dir=str(glyphs), shots=5)
    config = Config(data=data, evaluation=PROTOCOL, sampling=SamplingConfig())
    info, critic = read_dataset_info(glyphs), PIXELS
    cell = make_cells(config, info, "test")[0]
    splits = ("test", "train")
    real, training = (
        read_real_images(split_images(glyphs, info, s), info.split(s), critic) for s in splits
    )
    found = nearest_to_supports(cell, real, training)
    members = [real.members(c) for c in cell.classes]
    supports = [e.supports for e in cell.episodes(info.split("test"), 0)]
    free = [np.setdiff1d(m, s)[-4:] for m, s in zip(members, supports, strict=True)]
    images = np.stack([[real.images[int(i)] for i in indices] for indices in free])
    shown = np.stack([[real.images[i] for i in indices] for indices in supports])

    def comparison(edit):
        edited = edit(images, shown).astype(np.uint8)
        return compare(cell, edited, real, critic, training.features[found])

    def table(edit):
        return score_cell(comparison(edit), [], cell, training, PROTOCOL, perceptual=None)[0]

    # Noise is added because a generated sample never equals a real image.
    rng = np.random.default_rng(0)
    noise = rng.integers(-12, 13, images.shape)
    good = table(lambda x, s: np.clip(x + noise, 0, 255))
    table.comparison = comparison
    table.nearest = training, shown, found
    return good, table


def value(table, metric, image_set="samples"):
    return table.scores[metric][image_set].value


def test_good_samples_score_about_as_real_images_do(scored):
    good, _ = scored
    assert value(good, "frechet_distance") < 2 * value(good, "frechet_distance", "real")
    assert value(good, "coverage") > 0.8 * value(good, "coverage", "real")
    assert (
        abs(value(good, "pairwise_distance") / value(good, "pairwise_distance", "real") - 1) < 0.2
    )
    assert abs(value(good, "support_distance") / value(good, "support_distance", "real") - 1) < 0.2
    assert value(good, "top1") > 0.9
    assert value(good, "near_copies") < 0.2


def test_baselines_have_the_expected_scores(scored):
    good, _ = scored
    assert value(good, "near_copies", "copied_support") == 1
    assert value(good, "support_distance", "copied_support") == 0
    assert value(good, "top1", "other_class") < 0.1
    assert value(good, "classifier", "other_class") < 0.3 < value(good, "classifier")
    assert value(good, "support_distance", "mean_of_supports") < value(
        good, "support_distance", "real"
    )
    for metric, sets in good.scores.items():
        for name, score in sets.items():
            assert np.isfinite(score.value), (metric, name)
            if score.low is not None and metric != "frechet_distance":
                assert score.low - 1e-9 <= score.value <= score.high + 1e-9, (metric, name)


def test_the_nearest_training_images_are_those_nearest_to_the_mean_of_the_supports(scored):
    good, table = scored
    training, supports, found = table.nearest
    pool = training.features.reshape(len(training.features), -1).astype(float)
    for shown, indices in zip(supports, found, strict=True):
        distances = np.square(pool - shown.reshape(len(shown), -1).mean(0)).sum(1)
        assert distances[indices] == pytest.approx(np.sort(distances)[: len(indices)])
    assert found.shape == (PROTOCOL.classes, PROTOCOL.samples_per_episode)
    # They are real images, but of other classes.
    assert value(good, "top1", "nearest_training") < value(good, "top1", "real")
    assert value(good, "classifier", "nearest_training") < value(good, "classifier")
    assert "nearest_training" not in good.scores["training_distance"]


def test_blur_worsens_the_fidelity_to_the_set(scored):
    good, table = scored
    mild, strong = (table(lambda x, s, sigma=sigma: blurred(x, sigma)) for sigma in (1.5, 4))
    for metric in ("frechet_distance", "kernel_distance", "gaussian_distance"):
        assert value(good, metric) < value(mild, metric) < value(strong, metric)
    assert value(good, "recall") > value(strong, "recall")
    assert value(good, "coverage") > value(strong, "coverage")
    assert value(good, "top1") > value(strong, "top1")


def test_swapped_classes_worsen_the_fidelity_to_the_class_alone(scored):
    good, table = scored
    swapped = table(lambda x, s: np.roll(x, 7, axis=0))
    assert value(swapped, "top1") < 0.1 < value(good, "top1")
    assert value(swapped, "top5") < 0.5
    assert value(swapped, "classifier") < 0.3
    assert value(swapped, "classifier_with_supports") < value(good, "classifier_with_supports")
    assert value(swapped, "support_distance") > 1.3 * value(good, "support_distance")
    assert abs(value(swapped, "frechet_distance") / value(good, "frechet_distance") - 1) < 0.3


def test_dropped_modes_lower_recall_and_variety(scored):
    good, table = scored

    def one_each(images, supports):
        moved = np.random.default_rng(1).integers(-3, 4, images.shape)
        return np.clip(np.repeat(images[:, :1], images.shape[1], axis=1) + moved, 0, 255)

    dropped = table(one_each)
    assert value(dropped, "pairwise_distance") < 0.2 * value(good, "pairwise_distance")
    assert value(dropped, "coverage") < 0.8 * value(good, "coverage")
    assert value(dropped, "recall") < value(good, "recall")
    assert value(dropped, "top1") > 0.8


def test_copies_raise_near_copies_though_other_metrics_improve(scored):
    good, table = scored
    copied = table(lambda x, s: s[:, :4])
    assert value(copied, "near_copies") == 1 and value(copied, "support_distance") == 0
    assert value(copied, "precision") > 0.9 and value(copied, "coverage") > 0.8
    assert value(good, "near_copies") < 0.2


def test_scores_by_class_average_to_those_of_the_table(scored):
    good, _ = scored
    for metric, classes in good.by_class.items():
        assert len(classes) == PROTOCOL.classes
        assert np.mean(list(classes.values())) == pytest.approx(value(good, metric))


def test_no_support_is_in_the_reference(scored):
    """Otherwise copies of supports would be nearer to the reference than real images are."""
    _, table = scored
    comparison = table.comparison(lambda x, s: x)
    reference, baseline = halves(comparison)
    assert not np.isin(comparison.supports, reference).any()
    chosen = np.concatenate([reference, baseline])
    assert len(np.unique(chosen)) == len(chosen)
    classes = np.unique(comparison.class_id).tolist()
    assert len(chosen) == sum(len(comparison.real.members(c)) for c in classes)
    assert 0 <= len(reference) - len(baseline) <= len(classes)


def test_one_class_has_scores_without_intervals(scored):
    _, table = scored
    comparison = table.comparison(lambda x, s: x)
    sets = {
        name: ImageSet(images.features[:1].repeat(12, axis=1))
        for name, images in comparison.sets.items()
    }
    one = dataclasses.replace(
        comparison,
        class_id=comparison.class_id[:1],
        supports=comparison.supports[:1],
        rest=comparison.rest[:1],
        sets={name: sets[name] for name in ("samples", "mean_of_supports")},
    )
    assert class_fidelity(one)[0]["top1"]["samples"].low is None
    assert classifier_scores(one, ways=5) == {}


def test_dropped_modes_lower_lpips_too(scored, tmp_path):
    _, table = scored
    lpips = load_lpips(str(lpips_original.write(tmp_path)))

    def distance(edit):
        scores, _ = variety(table.comparison(edit), lpips.pairwise)
        return scores["lpips"]

    good, dropped = distance(lambda x, s: x), distance(lambda x, s: x[:, :1].repeat(4, axis=1))
    assert dropped["samples"].value == 0
    assert good["samples"].value == pytest.approx(good["real"].value, rel=0.2)
    assert good["real"] == dropped["real"]


@pytest.mark.large  # slow: roots of 2048 x 2048 matrices by eigenvalues
def test_blur_worsens_the_inception_fid(scored, inception_weights):
    _, table = scored
    scores = inception_scores(table.comparison(lambda x, s: blurred(x, 3)), inception_weights)
    assert (
        scores["inception_distance"]["real"].value < scores["inception_distance"]["samples"].value
    )
