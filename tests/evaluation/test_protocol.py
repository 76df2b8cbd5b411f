import dataclasses

import numpy as np
import pytest

from fsdit.config import Config, DataConfig, EvaluationConfig, TrainConfig
from fsdit.data.layout import read_dataset_info
from fsdit.errors import ConfigError, DataError
from fsdit.evaluation.protocol import make_cells, training_cell


def config_of(glyphs, shots=5, **protocol):
    data = DataConfig(dataset_dir=str(glyphs), shots=shots)
    return Config(data=data, evaluation=EvaluationConfig(**protocol))


def cells_of(glyphs, split="test", **settings):
    return make_cells(config_of(glyphs, **settings), read_dataset_info(glyphs), split)


def test_each_table_has_a_cell_and_the_unseen_split_comes_first(glyphs):
    cells = cells_of(glyphs, **{"shots": 5, "guidance_scales": (1.0, 3.0)})
    assert [p.name for p in cells] == [
        "test-5shot-guidance3",
        "train-5shot-guidance3",
        "test-5shot-guidance1",
    ]
    unseen, seen, _ = cells
    assert (
        len(unseen.classes)
        == len(seen.classes)
        == len(read_dataset_info(glyphs).split("test").classes)
    )
    assert [p.split for p in cells_of(glyphs, seen=False)] == ["test"]
    assert [p.split for p in cells_of(glyphs, split="train")] == ["train"]


@pytest.mark.parametrize("shots", [1, 5])
def test_episodes_are_rounds_over_the_chosen_classes(glyphs, shots):
    cell = cells_of(glyphs, shots=shots, classes=12, episodes_per_class=3, seeds=(0, 4))[0]
    split = read_dataset_info(glyphs).split("test")
    found = [e for seed in cell.seeds for e in cell.episodes(split, seed)]
    assert len(found) == cell.num_episodes == 12 * 3 * 2
    assert cell.num_samples == cell.num_episodes * cell.samples_per_episode
    np.testing.assert_array_equal([e.class_id for e in found], cell.class_ids())
    for episode in found:
        images = {episode.target, *episode.supports}
        assert len(images) == shots + 1
        assert images <= set(split.class_range(episode.class_id))
    assert len({e.supports for e in found}) > len(found) // 2


def test_an_episode_depends_on_seed_class_and_round_alone(glyphs):
    """More rounds, fewer classes or another number of samples leave the episodes as they are."""
    split = read_dataset_info(glyphs).split("test")

    def episodes(**settings):
        cell = cells_of(glyphs, **settings)[0]
        each = cell.episodes(split, 3)
        return {(e.class_id, i // len(cell.classes)): e for i, e in enumerate(each)}

    many, few = episodes(episodes_per_class=3), episodes(classes=10, samples_per_episode=1)
    assert len(few) == 10
    assert all(many[key] == episode for key, episode in few.items())


def test_a_cell_that_is_impossible_is_named(glyphs):
    with pytest.raises(ConfigError, match=r"config\.evaluation\.classes=999: the split 'test' has"):
        cells_of(glyphs, classes=999)
    with pytest.raises(DataError, match="shots=40 needs 41"):
        cells_of(glyphs, shots=40)
    info = read_dataset_info(glyphs)
    large = dataclasses.replace(info, image_size=224)
    with pytest.raises(ConfigError, match=r"images of 224 x 224 are too large to be compared"):
        make_cells(config_of(glyphs), large, "test")
    assert make_cells(config_of(glyphs, critic="dinov2"), large, "test")
    none = dataclasses.replace(info.split("val"), classes=(), images_per_class=())
    with pytest.raises(DataError, match=r"'val' .* has no classes"):
        make_cells(config_of(glyphs), dataclasses.replace(info, splits={"val": none}), "val")


def test_training_makes_about_as_many_samples_as_wanted(glyphs):
    info = read_dataset_info(glyphs)

    def cell(samples):
        train = TrainConfig(few_shot_interval=1, few_shot_samples=samples)
        return training_cell(dataclasses.replace(config_of(glyphs), train=train), info, "val")

    classes = len(info.split("val").classes)
    assert cell(3 * classes + 1).num_samples == 3 * classes
    assert cell(30).num_samples == len(cell(30).classes) == 30
    with pytest.raises(
        ConfigError, match=r"needs 20 samples, config\.train\.few_shot_samples makes 5"
    ):
        cell(5)
