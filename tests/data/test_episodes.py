import collections
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdit.data.episodes import (
    FileEpisodes,
    SampledEpisodes,
    check_class_sizes,
    draw_episodes,
    rotating_episodes,
)
from fsdit.data.layout import SplitInfo, write_split
from fsdit.data.readers import EpisodeReader
from fsdit.errors import DataError

SPLIT = SplitInfo(("a", "b", "c", "d"), images_per_class=(4, 7, 5, 6), episodes=12, shots=3)
SHOTS = 3
PER_CLASS = 3
EPOCH = PER_CLASS * len(SPLIT.classes)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    directory = tmp_path_factory.mktemp("split")
    write_split(directory, [], draw_episodes(SPLIT, SHOTS, PER_CLASS, seed=0))
    return EpisodeReader(directory, SPLIT, SHOTS)


@pytest.fixture(params=["sampled", "file"])
def make(request, reader):
    """A function of (seed, stratified) that makes a stream, for each source."""

    def sampled(seed, stratified):
        return SampledEpisodes(SPLIT, SHOTS, seed, stratified)

    def file(seed, stratified):
        return FileEpisodes(reader, seed, len(SPLIT.classes), stratified)

    return {"sampled": sampled, "file": file}[request.param]


def take(stream, start, stop):
    return [stream[i] for i in range(start, stop)]


@pytest.mark.parametrize("stratified", [False, True])
def test_an_episode_is_a_pure_function_of_seed_and_index(make, stratified):
    forwards = take(make(3, stratified), 0, 30)
    stream = make(3, stratified)
    backwards = [stream[i] for i in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert take(make(4, stratified), 0, 30) != forwards


@pytest.mark.parametrize("stratified", [False, True])
def test_target_and_supports_are_distinct_images_of_one_class(make, stratified):
    for episode in take(make(0, stratified), 0, 100):
        images = {episode.target, *episode.supports}
        assert len(episode.supports) == SHOTS
        assert len(images) == SHOTS + 1
        assert images <= set(SPLIT.class_range(episode.class_id))


def test_any_window_of_a_stratified_stream_holds_each_class_once(make):
    classes = [e.class_id for e in take(make(1, True), 0, 40)]
    for start in range(len(classes) - 4):
        assert sorted(classes[start : start + 4]) == [0, 1, 2, 3]


def test_a_plain_stream_repeats_classes_within_a_window(make):
    classes = [e.class_id for e in take(make(1, False), 0, 40)]
    assert any(len(set(classes[i : i + 4])) < 4 for i in range(36))


def test_every_image_of_every_class_becomes_a_target():
    stream = SampledEpisodes(SPLIT, SHOTS, seed=0)
    assert {e.target for e in take(stream, 0, 400)} == set(range(SPLIT.num_images))


def test_a_class_of_just_enough_images_is_used_in_full():
    stream = SampledEpisodes(SPLIT, SHOTS, seed=0)
    smallest = [e for e in take(stream, 0, 60) if e.class_id == 0]
    assert smallest
    assert all({e.target, *e.supports} == {0, 1, 2, 3} for e in smallest)


@pytest.mark.parametrize("stratified", [False, True])
def test_the_file_source_visits_each_episode_once_an_epoch(reader, stratified):
    stored = sorted(take(reader, 0, EPOCH), key=repr)
    stream = FileEpisodes(reader, 0, len(SPLIT.classes), stratified)
    epochs = [take(stream, i * EPOCH, (i + 1) * EPOCH) for i in range(3)]
    assert all(sorted(epoch, key=repr) == stored for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[1] != epochs[2]


def test_the_order_of_classes_follows_the_seed(make):
    orders = {tuple(e.class_id for e in take(make(seed, True), 0, 4)) for seed in range(12)}
    assert len(orders) > 1


@pytest.mark.parametrize(
    "refused",
    [
        lambda: check_class_sizes(SPLIT, 4),
        lambda: SampledEpisodes(SPLIT, 4, seed=0),
        lambda: draw_episodes(SPLIT, 4, per_class=1, seed=0),
        lambda: rotating_episodes(SPLIT, 4, sets_per_class=1, seed=0),
    ],
)
def test_a_class_too_small_for_k_is_named(refused):
    check_class_sizes(SPLIT, 3)
    with pytest.raises(
        DataError, match=r"class 'a' has 4 images, shots=4 needs 5 .*config.data.shots"
    ):
        refused()


def test_a_stratified_file_source_needs_episodes_of_every_class(tmp_path):
    drawn = [e for e in draw_episodes(SPLIT, SHOTS, 2, seed=0) if e.class_id != 2]
    write_split(tmp_path, [], drawn)
    with pytest.raises(DataError, match="class 2 has none"):
        FileEpisodes(EpisodeReader(tmp_path, SPLIT, SHOTS), 0, 4, stratified=True)


def test_drawn_episodes_hold_each_class_equally_often():
    drawn = draw_episodes(SPLIT, SHOTS, per_class=5, seed=2)
    assert sorted(e.class_id for e in drawn) == [c for c in range(4) for _ in range(5)]
    assert len(set(drawn)) > 4 * 3


def test_with_k_0_the_target_is_its_own_single_support(tmp_path):
    stream = SampledEpisodes(SPLIT, shots=0, seed=0)
    drawn = take(stream, 0, 200)
    assert all(e.supports == (e.target,) for e in drawn)
    assert {e.target for e in drawn} == set(range(SPLIT.num_images))
    write_split(tmp_path, [], drawn)
    assert take(EpisodeReader(tmp_path, SPLIT, shots=0), 0, 200) == drawn
    with pytest.raises(DataError, match=r"record 0: .* not 2 distinct images"):
        EpisodeReader(tmp_path, SPLIT, shots=1)[0]


def sets_of(episodes, shots):
    """The sets of a class's episodes in order: each is `shots + 1` episodes long."""
    return [episodes[i : i + shots + 1] for i in range(0, len(episodes), shots + 1)]


@given(
    st.lists(st.integers(6, 40), min_size=1, max_size=7),
    st.integers(0, 5),
    st.integers(1, 12),
    st.integers(0, 9),
)
def test_each_image_of_a_rotating_set_is_the_target_once(sizes, shots, sets_per_class, seed):
    split = SplitInfo(tuple(map(str, range(len(sizes)))), tuple(sizes), 0, 0)
    drawn = rotating_episodes(split, shots, sets_per_class, seed)
    assert len(drawn) == len(split.classes) * sets_per_class * (shots + 1)
    for class_id in range(len(split.classes)):
        mine = [e for e in drawn if e.class_id == class_id]
        assert len(mine) == sets_per_class * (shots + 1)
        members = set(split.class_range(class_id))
        sets = sets_of(mine, shots)
        for episodes in sets:
            images = {e.target for e in episodes}
            assert len(images) == shots + 1 and images <= members
            for e in episodes:
                assert set(e.supports) == (images - {e.target} or images)
                assert len(e.supports) == max(shots, 1)
        times = collections.Counter(frozenset(e.target for e in episodes) for episodes in sets)
        possible = math.comb(len(members), shots + 1)
        assert len(times) == min(possible, sets_per_class)
        assert max(times.values()) - min(times.values()) <= 1


@pytest.mark.parametrize("shots", [0, 3])
def test_rotating_episodes_are_interleaved_by_class(shots):
    classes = [e.class_id for e in rotating_episodes(SPLIT, shots, 5, seed=3)]
    for start in range(len(classes) - 3):
        assert sorted(classes[start : start + 4]) == [0, 1, 2, 3]


def test_rotating_episodes_follow_the_seed():
    first = rotating_episodes(SPLIT, SHOTS, 5, seed=0)
    assert rotating_episodes(SPLIT, SHOTS, 5, seed=0) == first
    assert rotating_episodes(SPLIT, SHOTS, 5, seed=1) != first


def test_the_published_setting_is_36000_distinct_episodes():
    split = SplitInfo(tuple(map(str, range(60))), (600,) * 60, 36_000, 5)
    drawn = rotating_episodes(split, shots=5, sets_per_class=100, seed=0)
    assert len(drawn) == len(set(drawn)) == split.episodes
