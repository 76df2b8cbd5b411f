import pytest

from data_prep.conversion import notes, splits
from data_prep.conversion.inputs.entries import Entry
from fsdit.data.layout import SplitInfo


@pytest.mark.parametrize(
    ("sizes", "shots", "sets", "reported"),
    [
        ((6, 8), 5, 1, []),
        ((6, 8), 5, 2, ["1 classes have fewer different sets of 6 images", "=2, down to 1:"]),
        ((6, 8), 5, 100, ["2 classes have fewer different sets of 6 images", "=100, down to 1:"]),
        ((9, 8), 0, 9, ["1 classes have fewer different sets of 1 images", "=9, down to 8:"]),
        ((600,), 5, 10**6, []),
    ],
)
def test_more_episodes_than_different_sets_are_reported(sizes, shots, sets, reported):
    split = SplitInfo(tuple(f"c{i}" for i in range(len(sizes))), sizes, 0, shots)
    found = list(notes.repeated_sets([split], shots, sets))
    assert len(found) == bool(reported)
    assert all(part in found[0] for part in reported)


def test_unused_classes_and_shared_ones_are_reported(capsys):
    some = [Entry(f"{c}/{i}", f"c{c}", None, 1, None) for c in range(4) for i in range(5)]
    used = {"train": {"c0": some[:5], "c1": some[5:10]}, "test": {"c1": some[10:13]}}
    dealt = splits.assign(some, lambda e: used, shots=2, drop=False)
    notes.print_assignment(dealt, by_classes=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("unused: 7 images, all of 2 classes among them") and "`rest`" in first
    assert "1 classes are in several splits, such as 'c1'" in second
    notes.print_assignment(dealt, by_classes=False)
    assert "--num_classes" not in capsys.readouterr().out
