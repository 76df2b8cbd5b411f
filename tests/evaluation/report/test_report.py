"""The files of a report: they are written, read back, and kept where writing fails."""

import math

import numpy as np
import pytest
from PIL import Image

from fsdit.errors import OutputError
from fsdit.evaluation.report import write as reports
from fsdit.evaluation.results import Score, read_results
from tests.conftest import small_disk_at
from tests.evaluation import results_example as example
from tests.evaluation.report.example_report import changed_score, write, written

pytestmark = pytest.mark.medium


def test_results_come_back_as_they_were(tmp_path):
    results, _ = written(tmp_path)
    assert read_results(tmp_path / "results.json") == results
    write(tmp_path, changed_score(results, "top1", "samples", Score(math.nan)))
    again = read_results(tmp_path / "results.json")
    assert math.isnan(again.tables[0].scores["top1"]["samples"].value)
    without = [changed_score(each, "top1", "samples", None) for each in (again, results)]
    assert without[0] == without[1]


def test_the_same_results_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        written(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_full_disk_keeps_the_report_that_was_there(tmp_path):
    with small_disk_at(tmp_path / "disk", size="700k") as disk:
        written(disk / "result", ["ant"])
        before = {p.name: p.read_bytes() for p in (disk / "result").iterdir()}
        assert before.keys() == {"samples.png", "report.html", "results.json"}
        for output in (disk / "result", disk / "new"):
            with pytest.raises(
                OutputError, match=r"cannot write .*No space left.*make room"
            ) as found:
                written(output, [f"class {i}" for i in range(200)])
            assert "\n" not in str(found.value) and str(output) in str(found.value)
        assert {p.name: p.read_bytes() for p in (disk / "result").iterdir()} == before
        assert list((disk / "new").iterdir()) == []


def test_an_output_that_is_a_file_gives_a_one_line_error(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/file: "):
        written(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_the_picture_shows_supports_and_samples_of_the_first_table(tmp_path):
    rng = np.random.default_rng(0)
    results = example.results(rng, [f"class {i}" for i in range(30)], shots=(5,))
    pictures = example.pictures(rng, results)
    made = reports.grids(results, pictures)
    assert made.keys() == {"test-5shot-guidance3/samples", "train-5shot-guidance3/samples"}
    grid = made["test-5shot-guidance3/samples"]
    cell = 14  # 12 pixels and a frame
    assert grid.shape == (1, 12 * cell, 9 * cell + 3, 1)
    rows = [grid[0, i * cell : (i + 1) * cell] for i in range(12)]
    for row, index in ((rows[0], 0), (rows[-1], 29)):
        np.testing.assert_array_equal(row[1:13, 1:13], pictures[index].supports[0])
        np.testing.assert_array_equal(row[1:13, -13:-1], pictures[index].samples[-1])
    reports.write(tmp_path, results, pictures)
    with Image.open(tmp_path / "samples.png") as image:
        assert (image.height, image.width) == (6 * grid.shape[1], 6 * grid.shape[2])
        np.testing.assert_array_equal(np.asarray(image)[::6, ::6], grid[0, ..., 0])
