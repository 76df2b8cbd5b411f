import itertools

import numpy as np
import pytest

from fsdit.config import Config, DataConfig
from fsdit.data.layout import read_dataset_info
from fsdit.data.pipeline import evaluation_examples, host_batches, training_examples
from fsdit.data.readers import EpisodeReader

pytestmark = pytest.mark.medium

BATCH = 8
STEPS = 3


@pytest.fixture
def config(glyphs):
    return DataConfig(dataset_dir=str(glyphs), batch_size=BATCH, shots=5, flip=True)


def training(data, seed=0):
    return training_examples(Config(data=data, seed=seed))


def evaluation(data, split):
    return evaluation_examples(Config(data=data), split)


def batches(config, rows=range(BATCH), start=0, count=STEPS, **options):
    read = training(config)
    return list(host_batches(read, rows, BATCH, start, count, config, place=lambda b: b, **options))


def assembled(config, hosts, start=0):
    """Global batches, assembled from the rows that each host reads."""
    share = BATCH // hosts
    parts = [batches(config, range(h * share, (h + 1) * share), start) for h in range(hosts)]
    return [
        {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
        for pieces in zip(*parts, strict=True)
    ]


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], strict=True, err_msg=name)


def test_a_batch_has_the_promised_arrays(config):
    for step, batch in enumerate(batches(config)):
        assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
            "index": ((BATCH,), "uint32"),
            "class_id": ((BATCH,), "int32"),
            "target": ((BATCH, 24, 24, 1), "uint8"),
            "supports": ((BATCH, 5, 24, 24, 1), "uint8"),
        }
        assert batch["index"].tolist() == list(range(step * BATCH, (step + 1) * BATCH))


@pytest.mark.parametrize("source", ["file", "sampled"])
@pytest.mark.parametrize("hosts", [2, 4])
def test_the_global_batch_is_the_same_row_for_row_from_any_number_of_hosts(glyphs, source, hosts):
    config = DataConfig(dataset_dir=str(glyphs), batch_size=BATCH, source=source)
    assert_same(assembled(config, hosts), batches(config))


def test_a_host_may_hold_scattered_rows(config):
    rows = [1, 4, 6]
    for mine, whole in zip(batches(config, rows), batches(config), strict=True):
        np.testing.assert_array_equal(mine["target"], whole["target"][rows])


def test_worker_processes_change_nothing(config):
    with_workers = DataConfig(**{**vars(config), "workers": 2})
    assert_same(batches(with_workers), batches(config))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_resuming_continues_with_the_next_batch_on_any_number_of_hosts(config, hosts):
    straight = batches(config, count=2 + STEPS)
    assert_same(assembled(config, hosts, start=2 * BATCH), straight[2:])


def test_with_k_0_the_support_is_the_target_before_its_flip(config):
    config = DataConfig(**{**vars(config), "shots": 0, "source": "sampled"})
    plain = training(DataConfig(**{**vars(config), "flip": False}))
    for batch in batches(config):
        assert batch["supports"].shape == (BATCH, 1, 24, 24, 1)
        for index, support in zip(batch["index"], batch["supports"], strict=True):
            np.testing.assert_array_equal(support[0], plain(int(index))["target"])


def test_another_seed_reads_other_examples(config):
    first, second = (training(config, seed)(0) for seed in (0, 1))
    assert not np.array_equal(first["supports"], second["supports"])


def test_flip_mirrors_about_half_of_the_targets_by_index_and_never_a_support(config):
    plain = DataConfig(**{**vars(config), "flip": False})
    flipping, still = training(config), training(plain)
    mirrored = []
    for i in range(60):
        a, b = flipping(i), still(i)
        np.testing.assert_array_equal(a["supports"], b["supports"])
        choices = [np.array_equal(a["target"], b["target"][:, ::s]) for s in (1, -1)]
        assert any(choices)
        if not all(choices):
            mirrored.append(choices[1])
        np.testing.assert_array_equal(flipping(i)["target"], a["target"])
    assert len(mirrored) > 30
    assert 0.3 < np.mean(mirrored) < 0.7


def symmetries_of(images):
    """The eight turned and mirrored forms of images (..., H, W, C)."""
    mirrored = np.flip(images, -2)
    return [np.rot90(form, turns, (-3, -2)) for form in (images, mirrored) for turns in range(4)]


def test_class_augmentation_changes_all_images_of_an_episode_alike_by_index(config):
    plain = training(config)
    augmented = training(DataConfig(**{**vars(config), "class_augmentation": 0.7}))
    found = []
    for i in range(80):
        before, after = plain(i), augmented(i)
        assert before["class_id"] == after["class_id"]
        pairs = zip(*(symmetries_of(before[part]) for part in ("supports", "target")), strict=True)
        found.append(
            [
                np.array_equal(after["supports"], supports)
                and np.array_equal(after["target"], target)
                for supports, target in pairs
            ]
        )
        assert_same([augmented(i)], [after])
    distinct = [forms.index(True) for forms in found if sum(forms) == 1]
    assert all(any(forms) for forms in found)
    assert set(distinct) == set(range(8))
    assert 0.55 < np.mean([form != 0 for form in distinct]) < 0.85


def test_class_augmentation_is_the_same_from_any_number_of_hosts_after_a_resume(config):
    config = DataConfig(**{**vars(config), "class_augmentation": 0.5})
    straight = batches(config, count=1 + STEPS)
    assert_same(assembled(config, 2, start=BATCH), straight[1:])


def test_overfit_batches_go_round_the_first_ones(config):
    first = batches(config, count=2)
    assert_same(batches(config, count=5, overfit_batches=2), [*first, *first, first[0]])


def test_overfit_batches_can_be_resumed_and_split(config):
    first = batches(config, count=2)
    resumed = batches(config, range(4, BATCH), start=3 * BATCH, count=2, overfit_batches=2)
    expected = [{k: v[4:] for k, v in batch.items()} for batch in (first[1], first[0])]
    assert_same(resumed, expected)


def test_place_receives_each_batch_in_order_and_its_result_comes_out(config):
    stream = host_batches(
        training(config),
        range(BATCH),
        BATCH,
        0,
        4,
        config,
        place=lambda b: {"first": b["index"][0]},
    )
    assert [int(b["first"]) for b in stream] == [0, 8, 16, 24]


def test_evaluation_reads_the_episode_files_in_order(config, glyphs):
    read, size = evaluation(config, "test")
    info = read_dataset_info(glyphs).splits["test"]
    stored = EpisodeReader(glyphs / "test", info, 5)
    assert size == info.episodes
    for i in (0, 1, size - 1):
        assert read(i)["class_id"] == stored[i].class_id
        np.testing.assert_array_equal(read(i)["target"], read.images[stored[i].target])


@pytest.mark.parametrize("shots", [5, 3, 0])
def test_evaluation_examples_are_fixed_and_wrap_round(config, glyphs, shots):
    config = DataConfig(**{**vars(config), "shots": shots})
    read, size = evaluation(config, "val")
    again, _ = evaluation(config, "val")
    assert size == read_dataset_info(glyphs).splits["val"].episodes
    for i, j in ((0, size), (5, size + 5), (2, 2 * size + 2)):
        for name in ("class_id", "target", "supports"):
            np.testing.assert_array_equal(read(i)[name], read(j)[name])
            np.testing.assert_array_equal(read(i)[name], again(i)[name])
        assert read(j)["index"] == j
    assert read(0)["supports"].shape[0] == max(shots, 1)
    assert len({read(i)["target"].tobytes() for i in range(6)}) > 3


def test_batches_arrive_one_at_a_time(config):
    read = training(config)
    stream = host_batches(read, range(BATCH), BATCH, 0, 10**9, config, place=lambda b: b)
    taken = list(itertools.islice(stream, 2))
    assert taken[1]["index"][0] == BATCH
