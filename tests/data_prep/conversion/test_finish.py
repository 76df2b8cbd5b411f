"""From tasks to a dataset, without the program: duplicates, replaced classes, tables, leftovers."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from data_prep.conversion import finish, jobs, shards, splits
from data_prep.conversion.counts import parse_class_counts
from data_prep.conversion.images import ImageOptions
from data_prep.conversion.inputs.entries import Entry
from data_prep.conversion.inputs.reading import Input, read_input
from data_prep.conversion.tables import write_table
from fsdit.data import episodes, layout
from fsdit.errors import DataError
from tests.data_prep.conversion.photos import class_folders, encoded, files, keys_by_class, photo

OPTIONS = ImageOptions(format="png")
SHOTS = 2


def read(source: Path, folder: jobs.ConversionFolder) -> Input:
    folder.work.mkdir(parents=True, exist_ok=True)
    return read_input(source, folder.spool, None, ("image", "label"), [])


def finish_options(**changes) -> finish.FinishOptions:
    choices = {"drop_duplicates": True, "shared_duplicates": "keep", "drop_small_classes": False}
    return finish.FinishOptions(
        shots=SHOTS,
        draw_episodes=lambda split: episodes.rotating_episodes(split, SHOTS, 1, 0),
        **{**choices, **changes},
    )


def planned(folder: jobs.ConversionFolder, found: Input, counts: Sequence[str]) -> jobs.JobList:
    dropped = jobs.dropped_classes(folder)
    numbers = parse_class_counts(counts)

    def deal(entries: Sequence[Entry]) -> splits.Splits:
        return splits.fewshot(entries, numbers, 0, dropped)

    dealt = splits.assign(found.entries, deal, SHOTS, True, dropped)
    return jobs.make(folder, dealt, {}, OPTIONS, shard_bytes=5000)


def run(folder: jobs.ConversionFolder, found: Input, made: jobs.JobList) -> None:
    task = shards.ConvertShard(str(folder.root), found.reader, OPTIONS, 10**9)
    for shard in made.shards:
        task(shard)


def converted(source: Path, output: Path, counts=("2", "1", "1"), **changes) -> finish.Finished:
    folder = jobs.ConversionFolder(epath.Path(output))
    found = read(source, folder)
    made = planned(folder, found, counts)
    run(folder, found, made)
    finished = finish.finish(folder, made, finish_options(**changes))
    layout.write_dataset_json(folder.root, layout.DatasetInfo(40, 3, finished.splits, "c", 0))
    return finished


def rows(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        return [(row["file"], row["reason"]) for row in csv.DictReader(file)]


@pytest.fixture
def shared(tmp_path) -> tuple[Path, dict[str, str]]:
    """Four classes of four images, one image in all of them; (input, class -> its split)."""
    source = class_folders(tmp_path / "in", classes=4, images=4)
    for c in range(4):
        (source / f"class{c:02d}" / "same.jpg").write_bytes(encoded(photo(9999)))
    folder = jobs.ConversionFolder(epath.Path(tmp_path / "first"))
    made = planned(folder, read(source, folder), ("2", "1", "1"))
    return source, {label: split for split, labels in made.classes.items() for label in labels}


@pytest.mark.parametrize(("choice", "kept"), [("keep", 4), ("first", 1), ("none", 0)])
def test_an_image_of_several_classes_stays_in_all_in_one_or_in_none(shared, tmp_path, choice, kept):
    source, split_of = shared
    finished = converted(source, tmp_path / "d", shared_duplicates=choice)
    found = [
        k for s in finished.splits for ks in keys_by_class(tmp_path / "d", s).values() for k in ks
    ]
    same = [key for key in found if key.endswith("same.jpg")]
    assert len(found) == 16 + kept and len(same) == kept
    if choice == "first":
        first = sorted(label for label, split in split_of.items() if split == "train")[0]
        assert same == [f"{first}/same.jpg"]
    left_out = {name for name, _ in rows(tmp_path / "d" / "skipped.csv")}
    assert left_out == {f"class{c:02d}/same.jpg" for c in range(4)} - set(same)
    assert len(finished.duplicates) == 4  # all duplicates are reported in any case


def test_dropping_shared_duplicates_can_make_a_class_too_small(tmp_path):
    source = class_folders(tmp_path / "in", classes=4, images=2)
    for c in range(4):
        (source / f"class{c:02d}" / "same.jpg").write_bytes(encoded(photo(9999)))
    with pytest.raises(DataError, match="2 usable images, --shots=2 needs 3"):
        converted(source, tmp_path / "d", shared_duplicates="none")


def spoil(source: Path, labels: Sequence[str]) -> None:
    for label in labels:
        for path in sorted((source / label).iterdir())[1:]:
            path.write_bytes(b"no image")


def changes_of(directory: Path, split: str) -> dict[str, int]:
    """When the files of a split and its results were last written."""
    found = [*directory.glob(f"work/{split}-*.result.json"), *(directory / split).iterdir()]
    return {path.name: path.stat().st_mtime_ns for path in found}


def test_classes_that_turn_out_too_small_are_replaced_and_the_rest_is_kept(tmp_path):
    source = class_folders(tmp_path / "in", classes=8, images=4)
    folder = jobs.ConversionFolder(epath.Path(tmp_path / "d"))
    found = read(source, folder)
    first = planned(folder, found, ("3", "1", "1"))
    small = sorted(first.classes["train"])[1]
    spoil(source, [small])
    run(folder, found, first)
    options = finish_options(drop_small_classes=True)
    gone = finish.small_classes(folder, first, options)
    assert gone == {small: "1 usable images, --shots=2 needs 3"}
    untouched = changes_of(tmp_path / "d", "test")

    jobs.drop_classes(folder, gone)
    second = planned(folder, found, ("3", "1", "1"))
    assert len(second.classes["train"]) == 3 and small not in second.classes["train"]
    assert second.classes["test"] == first.classes["test"]
    run(folder, found, second)
    assert changes_of(tmp_path / "d", "test") == untouched
    assert finish.small_classes(folder, second, options) == {}
    finished = finish.finish(folder, second, options)
    layout.write_dataset_json(folder.root, layout.DatasetInfo(40, 3, finished.splits, "c", 0))
    assert len(keys_by_class(tmp_path / "d", "train")) == 3
    assert ("", f"{gone[small]}") in rows(tmp_path / "d" / "skipped.csv")

    # A conversion that leaves the small class out from the start gives the same files.
    other = jobs.ConversionFolder(epath.Path(tmp_path / "e"))
    found = read(source, other)
    jobs.drop_classes(other, gone)
    made = planned(other, found, ("3", "1", "1"))
    run(other, found, made)
    finish.finish(other, made, options)
    for split in ("train", "val", "test"):
        assert files(tmp_path / "d" / split) == files(tmp_path / "e" / split)


@pytest.mark.parametrize("name", ["d[1]", "d*", "d?", "[d", "{d}", "a [b] c"])
def test_leftovers_are_deleted_whatever_the_path_is_called(tmp_path, name):
    source = class_folders(tmp_path / "in", classes=4, images=3)
    output = tmp_path / name
    (output / "train").mkdir(parents=True)
    for leftover in ("x.partial", "train/images-00000-of-00001.array_record.77.partial"):
        (output / leftover).write_bytes(b"x")
    converted(source, output)
    assert not [name for name in files(output) if name.endswith(".partial")]


STARTS = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"


@given(
    st.lists(st.tuples(*[st.text(st.sampled_from(STARTS + "a1,\"'\x1b\u202e"), max_size=5)] * 4))
)
def test_no_cell_of_a_table_is_a_formula_or_steers_a_terminal(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("table") / "skipped.csv"
    write_table(epath.Path(path), "reason", texts)
    with path.open(newline="", encoding="utf-8") as file:
        header, *found = csv.reader(file)
    assert header == ["split", "class", "file", "reason"] and len(found) == len(texts)
    cells = [cell for row in found for cell in row]
    assert not any(cell.startswith(tuple(STARTS)) for cell in cells)
    assert not any(character < " " or character == "\u202e" for cell in cells for character in cell)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *itertools.product(("plan.json", "result"), ("", "{", "[1]", '{"plan": 1}')),
        *itertools.product(("dropped.json",), ("", "{", "[1]")),
    ],
)
def test_a_damaged_working_folder_says_what_to_delete(tmp_path, file, content):
    source = class_folders(tmp_path / "in", classes=4, images=3)
    folder = jobs.ConversionFolder(epath.Path(tmp_path / "d"))
    found = read(source, folder)
    made = planned(folder, found, ("2", "1", "1"))
    run(folder, found, made)
    path = folder.result(made.shards[0].stem) if file == "result" else folder.work / file
    path.write_text(content)
    with pytest.raises(DataError, match=rf"{path}: .*delete"):
        finish.finish(folder, planned(folder, found, ("2", "1", "1")), finish_options())
