"""Parquet files in the forms that hubs, pandas and Spark write."""

import datetime
import decimal
import json
from pathlib import Path

import pyarrow as pa
import pytest
from etils import epath
from pyarrow import parquet

from data_prep.conversion.inputs import parquet as tables
from data_prep.conversion.inputs import sources
from fsdit.errors import DataError

DATA = [b"one", b"two", b"three", b"four"]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
STRUCTS = [{"bytes": data, "path": "x.jpg"} for data in DATA]
PATHLESS = [{"bytes": data} for data in DATA]


def opened(path: Path, columns=("image", "label")) -> sources.ListedInput:
    spool = epath.Path(path.parent / "spool")
    return sources.list_input(path, spool, None, columns)


def read(source: sources.ListedInput) -> list[tuple[str, bytes]]:
    return [(entry.label, source.reader.read(entry.place)) for entry in source.entries]


def write(path: Path, names=None, **columns) -> Path:
    """Writes a Parquet file. names: those of the classes, stored as hubs store them."""
    table = pa.table(columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        note = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": note})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)
    return path


IMAGES = {
    "struct": pa.array(STRUCTS, STRUCT),
    "struct of large binary": pa.array(
        STRUCTS, pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    ),
    "struct without path": pa.array(PATHLESS, pa.struct([("bytes", pa.binary())])),
    "binary": pa.array(DATA, pa.binary()),
    "large binary": pa.array(DATA, pa.large_binary()),
    "binary view": pa.array(DATA, pa.binary_view()),
    "dictionary": pa.array(DATA, pa.binary()).dictionary_encode(),
    "list of structs": pa.array([[s] for s in STRUCTS], pa.list_(STRUCT)),
    "large list of binary": pa.array([[data] for data in DATA], pa.large_list(pa.binary())),
    "list of one": pa.array([[s] for s in STRUCTS], pa.list_(STRUCT, 1)),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_every_type_are_read(tmp_path, kind):
    path = write(tmp_path / "a.parquet", image=IMAGES[kind], label=pa.array([0, 1, 0, 1]))
    assert read(opened(path)) == list(zip("0101", DATA, strict=True))


def test_several_images_in_a_row_are_all_of_its_class(tmp_path):
    images = pa.array([STRUCTS[:3], [], STRUCTS[3:]], pa.list_(STRUCT))
    source = opened(write(tmp_path / "a.parquet", image=images, label=[0, 1, 1]))
    assert read(source) == [
        ("0", DATA[0]),
        ("0", DATA[1]),
        ("0", DATA[2]),
        ("1", b""),
        ("1", DATA[3]),
    ]
    assert len({entry.name for entry in source.entries}) == 5


@pytest.mark.parametrize(
    ("columns", "flags"),
    [
        ({"image.bytes": DATA, "image.path": ["x"] * 4, "label": [0, 1, 0, 1]}, ("image", "label")),
        ({"image.bytes": DATA, "label": [0, 1, 0, 1]}, ("image.bytes", "label")),
        ({"image": pa.array(STRUCTS, STRUCT), "label": [0, 1, 0, 1]}, ("image.bytes", "label")),
        (
            {"all": [{"img": s, "fine": i % 2} for i, s in enumerate(STRUCTS)]},
            ("all.img", "all.fine"),
        ),
    ],
)
def test_flattened_and_nested_columns_are_read(tmp_path, columns, flags):
    path = write(tmp_path / "a.parquet", **columns)
    assert read(opened(path, flags)) == list(zip("0101", DATA, strict=True))


NONE = "no label"
NAMES = ["ant", "bee"]
# kind -> (labels, names, initials of the classes that are read, reasons for the other rows)
LABELS = {
    "dictionary": (pa.array(["ant", "bee", "ant", None]).dictionary_encode(), None, "aba", [NONE]),
    "dictionary of numbers": (pa.array([0, 1, 0, 1]).dictionary_encode(), NAMES, "abab", []),
    "large text": (pa.array(["ant", "bee", "ant", ""], pa.large_string()), None, "aba", [NONE]),
    "text view": (pa.array(["ant", "bee", "ant", None], pa.string_view()), None, "aba", [NONE]),
    "bytes": (pa.array([b"ant", b"bee", b"ant", None]), None, "aba", [NONE]),
    "small numbers": (pa.array([0, 1, 0, 1], pa.uint8()), NAMES, "abab", []),
    "nullable numbers": (pa.array([0, None, 0, 1], pa.int64()), NAMES, "aab", [NONE]),
    "floats with gaps": (pa.array([0.0, float("nan"), 0.0, None]), NAMES, "aa", [NONE] * 2),
    "decimals": (pa.array([decimal.Decimal(i % 2) for i in range(4)]), NAMES, "abab", []),
    "no label on a hub": (pa.array([0, -1, -1, 1]), NAMES, "ab", [NONE] * 2),
    "no label without names": (pa.array([0, -1, -1, 1]), None, "01", [NONE] * 2),
    "no label as a float": (pa.array([0, -1.0, 1, 1]), NAMES, "abb", [NONE]),
    "more than there are names": (pa.array([0, 2, -2, 1]), NAMES, "ab", [
        "label 2, of 2 that have names", "label -2, of 2 that have names",
    ]),
    "true and false": (pa.array([True, False, True, None]), None, "TFT", [NONE]),
    "nothing": (pa.nulls(4), None, "", [NONE] * 4),
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_type_are_read(tmp_path, kind):
    labels, names, expected, reasons = LABELS[kind]
    path = write(tmp_path / "a.parquet", names, image=pa.array(STRUCTS, STRUCT), label=labels)
    source = opened(path)
    assert [label[0] for label, _ in read(source)] == list(expected)
    assert [row[3] for row in source.rows] == reasons
    whole = {entry.name for entry in source.entries} | {row[2] for row in source.rows}
    assert whole == {f"a.parquet/{i:08d}" for i in range(4)}


def test_classes_of_one_name_on_a_hub_stay_apart(tmp_path):
    path = write(tmp_path / "a.parquet", ["crane", "ant", "crane"], image=DATA, label=[0, 1, 2, 0])
    labels = [label for label, _ in read(opened(path))]
    assert labels == ["crane (0)", "ant", "crane (2)", "crane (0)"]


@pytest.mark.parametrize(
    ("columns", "reported"),
    [
        ({"image": DATA, "label": [0.5] * 4}, "label holds double, and 0.5 is no number"),
        ({"image": DATA, "label": [float("inf")] * 4}, "holds double, and inf is no number"),
        ({"image": DATA, "label": [[0]] * 4}, "label_column=label holds list"),
        ({"image": DATA, "label": [datetime.date(2026, 1, 1)] * 4}, "holds date32"),
        ({"image": ["a.jpg"] * 4, "label": [0] * 4}, "image_column=image holds string"),
        ({"image": [[0, 1]] * 4, "label": [0] * 4}, "image_column=image holds list"),
        ({"image": [{"path": "a"}] * 4, "label": [0] * 4}, "image_column=image holds struct"),
        ({"pic\x1b[31m": DATA, "label": [0] * 4}, r"no column .* has pic\\x1b\[31m, label"),
    ],
)  # fmt: skip
def test_columns_of_a_wrong_type_or_name_are_refused(tmp_path, columns, reported):
    with pytest.raises(DataError, match=reported):
        opened(write(tmp_path / "a.parquet", **columns))


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(DATA), pa.array([0] * 4)] * 2, ["image", "label"] * 2)
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns --image_column=image"):
        opened(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00004.parquet", "train"),
        ("data/validation-00000-of-00001-ab12.parquet", "val"),
        ("default/train/0000.parquet", "train"),
        ("default/partial-test/0003.parquet", "test"),
        ("split=validation/part-0.parquet", "val"),
        ("Test/0.PARQUET", "test"),
        ("cifar10-train.parquet", "train"),
        ("train/test.parquet", "test"),
        ("0000.parquet", None),
        ("train-and-test.parquet", "train"),
        ("set-train-test.parquet", None),
        ("trainer/0.parquet", None),
    ],
)
def test_the_split_is_in_the_name_or_in_a_folder(name, split):
    assert tables.split_of(name) == split


def test_folder_names_may_give_the_label(tmp_path):
    for label in ("ant", "b%20ee", "__HIVE_DEFAULT_PARTITION__"):
        write(tmp_path / "in" / f"label={label}" / "part-0.parquet", image=DATA[:1])
    source = opened(tmp_path / "in")
    assert [label for label, _ in read(source)] == ["b ee", "ant"][::-1]
    assert [row[3] for row in source.rows] == [NONE]


def test_other_files_beside_parquet_files_are_reported(tmp_path):
    write(tmp_path / "in" / "train" / "0.parquet", image=DATA, label=[0, 1, 0, 1])
    for name in ("README.md", "thumbnail.png", ".gitattributes", ".cache/1.parquet"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    source = opened(tmp_path / "in")
    assert len(source.entries) == 4
    assert [row[2:] for row in source.rows] == [
        ("thumbnail.png", "beside Parquet files that hold images")
    ]
    assert source.others == {"*.md": 1, ".*": 2}


def test_a_parquet_file_that_only_describes_images_is_not_the_input(tmp_path):
    for label in ("ant", "bee"):
        (tmp_path / "in" / label).mkdir(parents=True)
        (tmp_path / "in" / label / "1.jpg").write_bytes(b"x")
    write(tmp_path / "in" / "00000.parquet", url=["http://a"], caption=["an ant"])
    (tmp_path / "in" / "broken.parquet").write_bytes(b"x")
    source = opened(tmp_path / "in")
    assert {entry.label for entry in source.entries} == {"ant", "bee"}
    assert source.others == {"*.parquet": 2}


def test_no_damage_of_a_parquet_file_ends_in_a_traceback(tmp_path):
    path = write(tmp_path / "a.parquet", NAMES, image=pa.array(STRUCTS, STRUCT), label=[0, 1, 0, 1])
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :])
        try:
            opened(path)
        except DataError as error:
            assert str(path) in str(error)
