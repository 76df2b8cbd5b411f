import dataclasses

import numpy as np
import pytest

from fsdit.config import Config, DataConfig, EvaluationConfig, TrainConfig
from fsdit.data.layout import read_dataset_info
from fsdit.errors import ConfigError, DataError
from fsdit.evaluation.protocol import make_plans, watch_plan


def config_of(glyphs, shots=5, **protocol):
    data = DataConfig(dataset_dir=str(glyphs), shots=shots)
    return Config(data=data, evaluation=EvaluationConfig(**protocol))


def plans_of(glyphs, split="test", **settings):
    return make_plans(config_of(glyphs, **settings), read_dataset_info(glyphs), split)


def test_each_table_has_a_plan_the_unseen_split_first(glyphs):
    plans = plans_of(glyphs, **{"shots": 5, "guidance_scales": (1.0, 3.0)})
    assert [p.name for p in plans] == [
        "test-5shot-guidance3",
        "train-5shot-guidance3",
        "test-5shot-guidance1",
    ]
    unseen, seen, _ = plans
    assert (
        len(unseen.classes)
        == len(seen.classes)
        == len(read_dataset_info(glyphs).split("test").classes)
    )
    assert [p.split for p in plans_of(glyphs, seen=False)] == ["test"]
    assert [p.split for p in plans_of(glyphs, split="train")] == ["train"]


@pytest.mark.parametrize("shots", [1, 5])
def test_episodes_are_rounds_over_the_chosen_classes(glyphs, shots):
    plan = plans_of(glyphs, shots=shots, classes=12, episodes_per_class=3, seeds=(0, 4))[0]
    split = read_dataset_info(glyphs).split("test")
    found = [e for seed in plan.seeds for e in plan.episodes(split, seed)]
    assert len(found) == plan.num_episodes == 12 * 3 * 2
    assert plan.num_drawings == plan.num_episodes * plan.drawings
    np.testing.assert_array_equal([e.class_id for e in found], plan.class_ids())
    for episode in found:
        images = {episode.target, *episode.supports}
        assert len(images) == shots + 1
        assert images <= set(split.class_range(episode.class_id))
    assert len({e.supports for e in found}) > len(found) // 2


def test_an_episode_depends_on_seed_class_and_round_alone(glyphs):
    """More rounds, fewer classes or other drawings leave the episodes that stay as they are."""
    split = read_dataset_info(glyphs).split("test")

    def episodes(**settings):
        plan = plans_of(glyphs, **settings)[0]
        each = plan.episodes(split, 3)
        return {(e.class_id, i // len(plan.classes)): e for i, e in enumerate(each)}

    many, few = episodes(episodes_per_class=3), episodes(classes=10, drawings_per_episode=1)
    assert len(few) == 10
    assert all(many[key] == episode for key, episode in few.items())


def test_what_cannot_be_drawn_is_named(glyphs):
    with pytest.raises(ConfigError, match=r"config\.evaluation\.classes=999: the split 'test' has"):
        plans_of(glyphs, classes=999)
    with pytest.raises(DataError, match="shots=40 needs 41"):
        plans_of(glyphs, shots=40)
    info = read_dataset_info(glyphs)
    large = dataclasses.replace(info, image_size=224)
    with pytest.raises(ConfigError, match=r"images of 224 x 224 are too large to be judged"):
        make_plans(config_of(glyphs), large, "test")
    assert make_plans(config_of(glyphs, judge="dinov2"), large, "test")
    none = dataclasses.replace(info.split("val"), classes=(), images_per_class=())
    with pytest.raises(DataError, match=r"'val' .* has no classes"):
        make_plans(config_of(glyphs), dataclasses.replace(info, splits={"val": none}), "val")


def test_the_light_version_makes_about_as_many_drawings_as_wanted(glyphs):
    info = read_dataset_info(glyphs)

    def plan(drawings):
        train = TrainConfig(fsd_interval=1, fsd_drawings=drawings)
        return watch_plan(dataclasses.replace(config_of(glyphs), train=train), info, "val")

    classes = len(info.split("val").classes)
    assert plan(3 * classes + 1).num_drawings == 3 * classes
    assert plan(30).num_drawings == len(plan(30).classes) == 30
    with pytest.raises(
        ConfigError, match=r"needs 20 drawings, config\.train\.fsd_drawings makes 5"
    ):
        plan(5)
