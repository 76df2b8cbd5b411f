"""CSV lists give classes and splits, and a wrong one says where."""

from pathlib import Path

import pytest

from data_prep.conversion.inputs import classes, lists
from data_prep.conversion.inputs.entries import File
from fsdit.errors import DataError


def csv_files(tmp_path, **texts: str) -> list[Path]:
    paths = [tmp_path / f"{name}.csv" for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text("filename,label\n" + text)
    return paths


def test_lists_give_classes_and_splits(tmp_path):
    entries = classes.classify([File(f"images/{i}.jpg", 1, i) for i in range(5)])
    paths = csv_files(tmp_path, train="3.jpg,bee\n0.jpg,ant\n", test="images/4.jpg,cat\n")
    found, others = lists.relabel(entries, paths)
    assert [(e.name, e.label, e.split, e.place) for e in found] == [
        ("images/0.jpg", "ant", "train", 0),
        ("images/3.jpg", "bee", "train", 3),
        ("images/4.jpg", "cat", "test", 4),
    ]
    assert [row[2:] for row in others] == [
        (f"images/{i}.jpg", "in none of the lists") for i in (1, 2)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.jpg,ant\n7.jpg,ant\n8.jpg,ant\n", "2 of its files are not in --input.*'7.jpg'"),
        ("0.jpg,ant\n0.jpg,bee\n", "'0.jpg' names several files, or is listed twice"),
        ("same.jpg,ant\n", "'same.jpg' names several files"),
        ("0.jpg,\n", "line 2: no filename or no label"),
        ("0.jpg\n", "line 2: no filename or no label"),
    ],
)
def test_wrong_lists_say_where(tmp_path, text, message):
    names = ["a/0.jpg", "a/same.jpg", "b/same.jpg"]
    entries = classes.classify([File(n, 1, n) for n in names])
    with pytest.raises(DataError, match=message):
        lists.relabel(entries, csv_files(tmp_path, train=text))


def test_a_list_without_a_label_column_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("filename,wnid\n0.jpg,ant\n")
    with pytest.raises(DataError, match=r"train.csv: no column 'label'"):
        lists.relabel([], [tmp_path / "train.csv"])
    with pytest.raises(DataError, match=r"none.csv: cannot be read"):
        lists.relabel([], [tmp_path / "none.csv"])
