import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import splits
from data_prep.counts import ClassCounts, parse_class_counts
from data_prep.entries import Entry
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
    assert first == splits.fewshot(entries(10, 2)[::1], counts("6,2,2"), 0)
    other = splits.fewshot(entries(10, 5), counts("6,2,2"), 0)
    assert {s: list(c) for s, c in first.items()} == {s: list(c) for s, c in other.items()}
    assert first != splits.fewshot(entries(10, 2), counts("6,2,2"), 1)


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
