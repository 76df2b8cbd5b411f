"""A table moves the right way when what is drawn is known: real images, made worse on purpose."""

import dataclasses

import numpy as np
import pytest

from fsdit.config import Config, DataConfig, EvaluationConfig, SamplingConfig
from fsdit.data.layout import read_dataset_info
from fsdit.data.readers import split_images
from fsdit.evaluation.comparison import Row, gather, read_real_images
from fsdit.evaluation.critics.critic import open_judge
from fsdit.evaluation.critics.lpips import load_lpips
from fsdit.evaluation.protocol import make_plans
from fsdit.evaluation.tables import (
    class_fidelity,
    halves,
    inception_scores,
    judge_drawings,
    use,
    variety,
)
from tests.evaluation.synthetic import blurred
from tests.models.pretrained import lpips_original

pytestmark = pytest.mark.medium

PROTOCOL = EvaluationConfig(classes=20, drawings_per_episode=4, episodes_per_class=1)


@pytest.fixture(scope="module")
def judged(glyphs):
    """A function from an edit of real images, taken for drawings, to the table's scores."""
    data = DataConfig(dataset_dir=str(glyphs), shots=5)
    config = Config(data=data, evaluation=PROTOCOL, sampling=SamplingConfig())
    info, judge = read_dataset_info(glyphs), open_judge(config)
    plan = make_plans(config, info, "test")[0]
    splits = ("test", "train")
    real, training = (
        read_real_images(split_images(glyphs, info, s), info.split(s), judge) for s in splits
    )
    members = [real.members(c) for c in plan.classes]
    supports = [e.supports for e in plan.episodes(info.split("test"), 0)]
    free = [np.setdiff1d(m, s)[-4:] for m, s in zip(members, supports, strict=True)]
    images = np.stack([[real.images[int(i)] for i in numbers] for numbers in free])
    shown = np.stack([[real.images[i] for i in numbers] for numbers in supports])

    def material(edit):
        return gather(plan, edit(images, shown).astype(np.uint8), real, judge)

    def table(edit):
        return judge_drawings(material(edit), plan, training, PROTOCOL, perceptual=None)[0]

    # With noise, because a drawing never equals an image of the pool.
    rng = np.random.default_rng(0)
    noise = rng.integers(-12, 13, images.shape)
    good = table(lambda x, s: np.clip(x + noise, 0, 255))
    table.material = material
    return good, table


def value(table, metric, row="drawings"):
    return table.scores[metric][row].value


def test_good_drawings_score_about_as_real_images_do(judged):
    good, _ = judged
    assert value(good, "frechet_distance") < 2 * value(good, "frechet_distance", "real")
    assert value(good, "coverage") > 0.8 * value(good, "coverage", "real")
    assert (
        abs(value(good, "pairwise_distance") / value(good, "pairwise_distance", "real") - 1) < 0.2
    )
    assert abs(value(good, "support_distance") / value(good, "support_distance", "real") - 1) < 0.2
    assert value(good, "top1") > 0.9
    assert value(good, "near_copies") < 0.2


def test_floors_and_ceilings_lie_where_they_must(judged):
    good, _ = judged
    assert value(good, "near_copies", "copied_support") == 1
    assert value(good, "support_distance", "copied_support") == 0
    assert value(good, "top1", "other_class") < 0.1
    assert value(good, "classifier", "other_class") < 0.3 < value(good, "classifier")
    assert value(good, "support_distance", "mean_of_supports") < value(
        good, "support_distance", "real"
    )
    for metric, rows in good.scores.items():
        for name, score in rows.items():
            assert np.isfinite(score.value), (metric, name)
            if score.low is not None and metric != "frechet_distance":
                assert score.low - 1e-9 <= score.value <= score.high + 1e-9, (metric, name)


def test_blur_is_seen_by_the_fidelity_to_the_set(judged):
    good, table = judged
    mild, strong = (table(lambda x, s, sigma=sigma: blurred(x, sigma)) for sigma in (1.5, 4))
    for metric in ("frechet_distance", "kernel_distance", "gaussian_distance"):
        assert value(good, metric) < value(mild, metric) < value(strong, metric)
    assert value(good, "recall") > value(strong, "recall")
    assert value(good, "coverage") > value(strong, "coverage")
    assert value(good, "top1") > value(strong, "top1")


def test_swapped_classes_are_seen_by_the_fidelity_to_the_class_alone(judged):
    good, table = judged
    swapped = table(lambda x, s: np.roll(x, 7, axis=0))
    assert value(swapped, "top1") < 0.1 < value(good, "top1")
    assert value(swapped, "top5") < 0.5
    assert value(swapped, "classifier") < 0.3
    assert value(swapped, "classifier_with_supports") < value(good, "classifier_with_supports")
    assert value(swapped, "support_distance") > 1.3 * value(good, "support_distance")
    assert abs(value(swapped, "frechet_distance") / value(good, "frechet_distance") - 1) < 0.3


def test_dropped_modes_are_seen_by_recall_and_variety(judged):
    good, table = judged

    def one_each(images, supports):
        moved = np.random.default_rng(1).integers(-3, 4, images.shape)
        return np.clip(np.repeat(images[:, :1], images.shape[1], axis=1) + moved, 0, 255)

    dropped = table(one_each)
    assert value(dropped, "pairwise_distance") < 0.2 * value(good, "pairwise_distance")
    assert value(dropped, "coverage") < 0.8 * value(good, "coverage")
    assert value(dropped, "recall") < value(good, "recall")
    assert value(dropped, "top1") > 0.8


def test_copies_are_seen_though_every_other_figure_likes_them(judged):
    good, table = judged
    copied = table(lambda x, s: s[:, :4])
    assert value(copied, "near_copies") == 1 and value(copied, "support_distance") == 0
    assert value(copied, "precision") > 0.9 and value(copied, "coverage") > 0.8
    assert value(good, "near_copies") < 0.2


def test_by_class_figures_average_to_those_of_the_table(judged):
    good, _ = judged
    for metric, classes in good.by_class.items():
        assert len(classes) == PROTOCOL.classes
        assert np.mean(list(classes.values())) == pytest.approx(value(good, metric))


def test_no_support_is_in_the_reference(judged):
    """Or copies of supports would come nearer to it than real images do."""
    _, table = judged
    material = table.material(lambda x, s: x)
    reference, ceiling = halves(material)
    assert not np.isin(material.supports, reference).any()
    chosen = np.concatenate([reference, ceiling])
    assert len(np.unique(chosen)) == len(chosen)
    classes = np.unique(material.class_id).tolist()
    assert len(chosen) == sum(len(material.real.members(c)) for c in classes)
    assert 0 <= len(reference) - len(ceiling) <= len(classes)


def test_one_class_has_figures_without_intervals(judged):
    _, table = judged
    material = table.material(lambda x, s: x)
    rows = {name: Row(row.features[:1].repeat(12, axis=1)) for name, row in material.rows.items()}
    one = dataclasses.replace(
        material,
        class_id=material.class_id[:1],
        supports=material.supports[:1],
        rest=material.rest[:1],
        rows={name: rows[name] for name in ("drawings", "mean_of_supports")},
    )
    assert class_fidelity(one)[0]["top1"]["drawings"].low is None
    assert use(one, ways=5) == {}


def test_lpips_sees_dropped_modes_too(judged, tmp_path):
    _, table = judged
    lpips = load_lpips(str(lpips_original.write(tmp_path)))

    def distance(edit):
        scores, _ = variety(table.material(edit), lpips.pairwise)
        return scores["lpips"]

    good, dropped = distance(lambda x, s: x), distance(lambda x, s: x[:, :1].repeat(4, axis=1))
    assert dropped["drawings"].value == 0
    assert good["drawings"].value == pytest.approx(good["real"].value, rel=0.2)
    assert good["real"] == dropped["real"]


@pytest.mark.large  # roots of 2048 x 2048 matrices, by eigenvalues
def test_inception_fid_sees_blur(judged, inception_weights):
    _, table = judged
    scores = inception_scores(table.material(lambda x, s: blurred(x, 3)), inception_weights)
    assert (
        scores["inception_distance"]["real"].value < scores["inception_distance"]["drawings"].value
    )
