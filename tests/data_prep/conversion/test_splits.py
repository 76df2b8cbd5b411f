import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.conversion import splits
from data_prep.conversion.counts import ClassCounts, parse_class_counts, parse_image_counts
from data_prep.conversion.inputs.entries import Entry
from fsdit.errors import ConfigError, DataError

SEEDS = st.integers(0, 1000)


def entries(classes: int, images: int, split: str | None = None) -> list[Entry]:
    return [
        Entry(f"c{c:02d}/{i:03d}.jpg", f"c{c:02d}", split, 1, None)
        for c in range(classes)
        for i in range(images)
    ]


def counts(text: str) -> ClassCounts:
    return parse_class_counts(text.split(","))


def names(split: dict[str, list[Entry]]) -> list[str]:
    return [e.name for images in split.values() for e in images]


@given(SEEDS)
def test_fewshot_deals_each_class_to_one_split(seed):
    dealt = splits.fewshot(entries(100, 2), counts("60,16,20"), seed)
    assert [len(classes) for classes in dealt.values()] == [60, 16, 20]
    assert list(dealt) == ["train", "val", "test"]
    every = [label for classes in dealt.values() for label in classes]
    assert len(set(every)) == 96
    for classes in dealt.values():
        assert list(classes) == sorted(classes)
        for label, images in classes.items():
            assert [e.name for e in images] == [f"{label}/000.jpg", f"{label}/001.jpg"]


def test_fewshot_depends_on_the_seed_and_class_names_alone():
    first = splits.fewshot(entries(10, 2), counts("6,2,2"), 0)
    other_order = sorted(entries(10, 2), key=lambda entry: entry.label, reverse=True)
    assert first == splits.fewshot(other_order, counts("6,2,2"), 0)
    other = splits.fewshot(entries(10, 5), counts("6,2,2"), 0)
    assert {s: list(c) for s, c in first.items()} == {s: list(c) for s, c in other.items()}
    assert first != splits.fewshot(entries(10, 2), counts("6,2,2"), 1)


def test_test_classes_are_not_dealt_and_are_all_of_the_test_split():
    tested = {"c00", "c01", "c02"}
    dealt = splits.fewshot(entries(10, 2), counts("rest,2,0"), 0, ["c01"], tested)
    assert list(dealt["test"]) == ["c00", "c02"]
    assert [len(classes) for classes in dealt.values()] == [5, 2, 2]
    assert not tested & {*dealt["train"], *dealt["val"]}


def test_more_classes_than_there_are_is_refused():
    with pytest.raises(
        ConfigError, match="--num_classes=6,3,2 asks for 11 classes, --input has 10"
    ):
        splits.fewshot(entries(10, 2), counts("6,3,2"), 0)


@given(SEEDS)
def test_vanilla_deals_different_images_of_every_class(seed):
    dealt = splits.vanilla(entries(5, 30), (20, 8), seed)
    assert {s: [len(i) for i in c.values()] for s, c in dealt.items()} == {
        "train": [20] * 5,
        "test": [8] * 5,
    }
    every = names(dealt["train"]) + names(dealt["test"])
    assert len(set(every)) == len(every)
    assert names(dealt["train"]) == sorted(names(dealt["train"]))


def test_vanilla_can_have_a_validation_split_and_follows_the_seed():
    dealt = splits.vanilla(entries(3, 30), (20, 4, 6), 0)
    assert [len(c["c00"]) for c in dealt.values()] == [20, 4, 6]
    assert list(dealt) == ["train", "val", "test"]
    assert dealt != splits.vanilla(entries(3, 30), (20, 4, 6), 1)


def test_vanilla_names_a_class_with_too_few_images():
    with pytest.raises(DataError, match="'c00' has 9 images, --images_per_class=8,2 needs 10"):
        splits.vanilla(entries(2, 9), (8, 2), 0)


def given_entries() -> list[Entry]:
    return entries(3, 8, "train") + entries(5, 7, "test")[21:]


def test_given_splits_are_kept_and_empty_ones_left_out():
    dealt = splits.assign(given_entries(), splits.given, shots=5, drop=False)
    assert {s: list(c) for s, c in dealt.splits.items()} == {
        "train": ["c00", "c01", "c02"],
        "test": ["c03", "c04"],
    }
    assert not dealt.shared_classes


def test_splits_of_the_same_classes_say_so():
    dealt = splits.assign(
        entries(3, 30), lambda e: splits.vanilla(e, (20, 8), 0), shots=5, drop=False
    )
    assert dealt.shared_classes


def test_a_small_class_is_named_or_left_out():
    some = [*entries(3, 8), Entry("rare/1.jpg", "rare", None, 1, None)]
    deal = lambda e: splits.fewshot(e, counts("2,1,0"), 0)  # noqa: E731
    four = lambda e: splits.fewshot(e, counts("2,1,1"), 0)  # noqa: E731
    with pytest.raises(
        DataError, match=r"'rare' of \w+ has 1 images, --shots=5 needs 6 .*--drop_s"
    ):
        splits.assign(some, four, shots=5, drop=False)
    dealt = splits.assign(some, deal, shots=5, drop=True)
    assert dealt.left_out == (("", "rare", "", "1 images, --shots=5 needs 6"),)
    assert "rare" not in {label for classes in dealt.splits.values() for label in classes}
    assert list(dealt.splits) == ["train", "val"]


def test_a_class_may_be_small_in_one_split_only():
    some = entries(2, 8, "train") + entries(2, 8, "test")[:11]
    dealt = splits.assign(some, splits.given, shots=5, drop=True)
    assert {s: list(c) for s, c in dealt.splits.items()} == {
        "train": ["c00", "c01"],
        "test": ["c00"],
    }
    assert dealt.left_out == (("test", "c01", "", "3 images, --shots=5 needs 6"),)


@pytest.mark.parametrize(
    ("some", "message"),
    [
        ([], "no class of images"),
        ([Entry("1.jpg", "", None, 1, None)], "no class of images"),
        (entries(1, 9), r"one class \('c00'\)"),
        (entries(2, 9, "test"), "no class of --input is for training"),
        (entries(2, 9), "no class of --input is for training"),
    ],
)
def test_inputs_without_classes_to_train_on_are_refused(some, message):
    with pytest.raises(DataError, match=message):
        splits.assign(some, splits.given, shots=5, drop=False)


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [
        ("60,16,20", 100, [60, 16, 20]),
        ("rest,16,20", 100, [64, 16, 20]),
        ("60, 16, Rest", 100, [60, 16, 24]),
        ("0.6,0.2,0.2", 100, [60, 20, 20]),
        ("0.6,0.2,0.2", 7, [4, 2, 1]),
        ("0.7,0.15,0.15", 10, [7, 1, 2]),
        ("0.34,0.33,0.33", 10, [3, 4, 3]),
        ("rest,0.2,0.1", 10, [7, 2, 1]),
        ("rest,5,5", 8, [0, 5, 5]),
        ("1.0,0,0", 5, [5, 0, 0]),
        (".5,.5,0", 4, [2, 2, 0]),
        ("0,rest,1", 4, [0, 3, 1]),
    ],
)
def test_counts_of_classes(text, total, expected):
    assert counts(text).of(total) == expected


NO_COUNTS = """
60,16 60,x,20 rest,rest,1 0.6,0.6,0 -1,2,3 1e3,1,1 1.5,0,0 1/2,0,0 ,, 60,16,20,4 nan,1,1
0.1e999999999,0,0 99999999999,0,0
"""


@pytest.mark.parametrize("text", NO_COUNTS.split())
def test_wrong_counts_of_classes_are_refused(text):
    with pytest.raises(ConfigError, match=r"--num_classes=.*(`rest`|fractions)"):
        counts(text)


@pytest.mark.parametrize("text", ["5", "5,x", "0.5,0.5", "1,2,3,4", "-5,1"])
def test_wrong_counts_of_images_are_refused(text):
    with pytest.raises(ConfigError, match=f"--images_per_class={text}"):
        parse_image_counts(text.split(","))
    assert parse_image_counts(["500", " 100"]) == [500, 100]


def files_reported(dealt: splits.Assignment) -> set[str]:
    """Files that are in a split, and files that a row names."""
    used = {name for classes in dealt.splits.values() for name in names(classes)}
    return used | {row[2] for row in dealt.left_out if row[2]}


UNUSED = {
    "classes that are not asked for": (
        entries(6, 8),
        lambda e: splits.fewshot(e, counts("2,1,1"), 0),
        (2, 16),
    ),
    "images beyond those asked for": (
        entries(2, 8),
        lambda e: splits.vanilla(e, (4, 3), 0),
        (0, 2),
    ),
    "images of no split": ([*entries(2, 8, "train"), *entries(3, 8)[16:]], splits.given, (1, 8)),
    "images of no split, of a class that is in one": (
        [*entries(2, 8, "train"), *entries(2, 9)[8:9]],
        splits.given,
        (0, 1),
    ),
    "all used": (entries(4, 8), lambda e: splits.fewshot(e, counts("rest,1,1"), 0), (0, 0)),
}


@pytest.mark.parametrize(("some", "split", "unused"), UNUSED.values(), ids=UNUSED.keys())
def test_images_in_no_split_are_counted_and_reported(some, split, unused):
    dealt = splits.assign(some, split, shots=2, drop=False)
    assert (dealt.unused_classes, dealt.unused_images) == unused
    rows = [row for row in dealt.left_out if row[3].endswith("images that are in no split")]
    assert sum(int(row[3].split()[0]) for row in rows) == unused[1]


def test_an_image_without_a_class_has_a_row():
    stray = Entry("cover.jpg", "", None, 1, None)
    dealt = splits.assign(
        [*entries(3, 8), stray], lambda e: splits.fewshot(e, counts("2,1,0"), 0), 2, drop=False
    )
    assert files_reported(dealt) == {"cover.jpg", *(e.name for e in entries(3, 8))}


def test_the_next_class_takes_the_place_of_a_dropped_one():
    first = splits.fewshot(entries(8, 2), counts("3,2,1"), 0)
    left = {e.label for e in entries(8, 2)} - {label for c in first.values() for label in c}
    gone = sorted(first["train"])[1]
    again = splits.fewshot(entries(8, 2), counts("3,2,1"), 0, [gone])
    assert {s: c for s, c in again.items() if s != "train"} == {
        s: c for s, c in first.items() if s != "train"
    }
    (new,) = again["train"].keys() - first["train"].keys()
    assert new in left and gone not in again["train"] and len(again["train"]) == 3
    spent = splits.fewshot(entries(8, 2), counts("3,2,1"), 0, [gone, *left])
    assert len(spent["train"]) == 2


def test_too_few_classes_without_the_small_ones_says_so():
    some = [*entries(3, 8), Entry("rare/1.jpg", "rare", None, 1, None)]
    with pytest.raises(ConfigError, match="--input has 3, without the 1 that --drop_small_classes"):
        splits.assign(some, lambda e: splits.fewshot(e, counts("2,1,1"), 0), 5, drop=True)


def test_classes_of_several_splits_are_named():
    some = [*entries(3, 8, "train"), *entries(1, 8, "test"), *entries(5, 8, "test")[24:]]
    dealt = splits.assign(some, splits.given, shots=5, drop=False)
    assert dealt.overlapping_classes == ["c00"]
    same = splits.assign(entries(3, 30), lambda e: splits.vanilla(e, (9, 8), 0), 5, drop=False)
    assert same.overlapping_classes == []


def test_a_flat_folder_is_refused_with_a_hint_at_class_folders():
    flat = [Entry(f"in/{i}.jpg", label, None, 1, None) for i in range(9) for label in ("in",)]
    for some in (flat, [Entry(f"{i}.jpg", "", None, 1, None) for i in range(9)]):
        with pytest.raises(DataError, match="9 images lie in one folder: put those of each class"):
            splits.assign(some, splits.given, shots=5, drop=False)
