import hashlib
from pathlib import Path

import pytest

from fsdit.data.episodes import SampledEpisodes
from fsdit.data.layout import SPLITS, read_dataset_info, read_manifest
from fsdit.data.readers import EpisodeReader, ImageReader, RecordReader
from fsdit.data.records import decode_image
from fsdit.evaluation.critics import trained
from tests.programs import run_module

pytestmark = pytest.mark.medium


def files(directory: Path) -> dict[str, bytes]:
    """The files of a dataset; an evaluation of another test may have left its critic there."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != trained.FILE
    }


def images(directory: Path, split: str) -> ImageReader:
    info = read_dataset_info(directory)
    return ImageReader(directory / split, info.image_size, info.channels)


def test_the_same_flags_give_the_same_bytes(glyphs, tmp_path):
    run_module("data_prep.glyphs", f"--output_dir={tmp_path / 'again'}").check_returncode()
    again = files(tmp_path / "again")
    assert len(again) == 1 + 3 * len(SPLITS)
    assert again == files(glyphs)


def test_another_seed_gives_another_split(glyphs, tmp_path):
    run_module("data_prep.glyphs", f"--output_dir={tmp_path / 'b'}", "--seed=1").check_returncode()
    mine, other = read_dataset_info(glyphs), read_dataset_info(tmp_path / "b")
    assert mine.splits["test"].classes != other.splits["test"].classes
    every = [sorted(c for s in i.splits.values() for c in s.classes) for i in (mine, other)]
    assert every[0] == every[1]


def test_the_splits_have_the_promised_shares_of_several_hundred_characters(glyphs):
    counts = {name: len(s.classes) for name, s in read_dataset_info(glyphs).splits.items()}
    total = sum(counts.values())
    assert total > 800
    assert counts["train"] / total == pytest.approx(0.70, abs=0.01)
    assert counts["val"] / total == pytest.approx(0.14, abs=0.01)
    assert counts["test"] / total == pytest.approx(0.16, abs=0.01)


def test_every_character_has_12_to_18_images(glyphs):
    splits = read_dataset_info(glyphs).splits.values()
    counts = {count for split in splits for count in split.images_per_class}
    assert (min(counts), max(counts)) == (12, 18)


@pytest.mark.parametrize("split", SPLITS)
def test_the_image_files_hold_the_images_of_each_character_in_turn(glyphs, split):
    info = read_dataset_info(glyphs).splits[split]
    reader = RecordReader(glyphs / split, "images")
    stored = [decode_image(reader[i]) for i in range(len(reader))]
    expected = [c for c, count in enumerate(info.images_per_class) for _ in range(count)]
    assert [record.class_id for record in stored] == expected
    for record in stored:
        assert record.key.startswith(f"U+{ord(info.classes[record.class_id]):04X}/")
    assert len({record.key for record in stored}) == len(stored)


@pytest.mark.parametrize("split", SPLITS)
def test_the_episode_files_hold_each_character_equally_often(glyphs, split):
    info = read_dataset_info(glyphs).splits[split]
    reader = EpisodeReader(glyphs / split, info, shots=5)
    drawn = [reader[i] for i in range(len(reader))]
    assert len(drawn) == info.episodes == 8 * len(info.classes)
    per_class = [[e for e in drawn if e.class_id == c] for c in range(len(info.classes))]
    assert {len(episodes) for episodes in per_class} == {8}
    stream = SampledEpisodes(info, 5, seed=0, stratified=True)
    assert drawn[:20] == [stream[i] for i in range(20)]


def test_no_character_and_no_picture_is_in_two_splits(glyphs):
    info = read_dataset_info(glyphs)
    characters = [set(info.splits[name].classes) for name in SPLITS]
    assert len(set().union(*characters)) == sum(map(len, characters))
    pictures = []
    for name in SPLITS:
        reader = images(glyphs, name)
        pictures.append({reader[i].tobytes() for i in range(len(reader))})
    assert len(set().union(*pictures)) == sum(map(len, pictures))


def test_a_picture_is_black_ink_inside_a_white_margin(glyphs):
    picture = images(glyphs, "train")[0]
    assert picture.shape == (24, 24, 1)
    assert picture.min() < 64
    assert (picture[[0, -1]] == 255).all() and (picture[:, [0, -1]] == 255).all()


def test_the_manifest_has_the_size_and_checksum_of_each_file(glyphs):
    for split in SPLITS:
        for name, entry in read_manifest(glyphs / split).items():
            content = (glyphs / split / name).read_bytes()
            assert entry["bytes"] == len(content)
            assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    done = run_module("data_prep.glyphs", f"--output_dir={tmp_path}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and str(tmp_path) in line
    assert files(tmp_path) == {"mine.txt": b"precious"}
    assert not tmp_path.with_name(tmp_path.name + ".partial").exists()


def test_a_shot_count_that_no_class_can_serve_ends_in_one_line_and_leaves_no_dataset(tmp_path):
    done = run_module("data_prep.glyphs", f"--output_dir={tmp_path / 'd'}", "--shots=12")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "needs 13" in line
    assert not (tmp_path / "d").exists()


def test_the_image_size_flag_makes_32_pixel_images_and_an_empty_folder_is_used(tmp_path):
    run_module("data_prep.glyphs", f"--output_dir={tmp_path}", "--image_size=32").check_returncode()
    assert read_dataset_info(tmp_path).image_size == 32
    reader = images(tmp_path, "test")
    assert {reader[i].shape for i in range(0, len(reader), 50)} == {(32, 32, 1)}
