import dataclasses
import io
import math

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from fsdit.errors import OutputError
from fsdit.evaluation.report import write
from fsdit.evaluation.results import Score, read_results, scalars
from tests.conftest import small_disk_at
from tests.evaluation import results_example as example

NAMES = ["ant", "bee", "cat", "dog", "eel"]


def events(directory):
    """Map the tag of each event in a directory to (plugin, step, value); no tag comes twice."""
    reader = EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()
    found = {}
    for tag in reader.Tags()["tensors"]:
        [event] = reader.Tensors(tag)
        plugin = reader.SummaryMetadata(tag).plugin_data.plugin_name
        found[tag] = (plugin, event.step, make_ndarray(event.tensor_proto))
    return found


@pytest.mark.medium
def test_tensorboard_agrees_with_the_results(tmp_path):
    rng = np.random.default_rng(0)
    results = example.results(rng, NAMES, guidance=(3.0, 5.0))
    results.tables[0].scores["top1"]["real"] = Score(math.nan)
    pictures = example.pictures(rng, results)
    write.write(tmp_path, results, pictures)
    write.write_tensorboard(tmp_path, results, pictures)
    found = events(tmp_path / "tensorboard")
    assert {step for _, step, _ in found.values()} == {results.step}

    numbers = {tag: value for tag, (plugin, _, value) in found.items() if plugin == "scalars"}
    expected = scalars(read_results(tmp_path / "results.json"))
    assert numbers.keys() == expected.keys() and len(expected) > 100
    assert f"{results.tables[0].name}/top1/real" not in numbers
    for tag, value in expected.items():
        assert numbers[tag] == np.float32(value), tag

    shown = {tag: value for tag, (plugin, _, value) in found.items() if plugin == "images"}
    grids = write.grids(results, pictures)
    assert (
        shown.keys()
        == grids.keys()
        == {f"{table.name}/samples" for table in results.tables if table.guidance_scale == 3.0}
    )
    for tag, (_, _, png) in shown.items():
        image = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        np.testing.assert_array_equal(image, grids[tag][0, ..., 0])


@pytest.mark.medium
def test_a_second_evaluation_replaces_its_events_and_no_others(tmp_path):
    other = tmp_path / "tensorboard" / "events.out.tfevents.123.host"
    other.parent.mkdir()
    other.write_bytes(b"of the training")
    for step in (1, 2):
        rng = np.random.default_rng(step)
        results = dataclasses.replace(example.results(rng, NAMES), step=step)
        write.write_tensorboard(tmp_path, results, example.pictures(rng, results))
    assert other.read_bytes() == b"of the training"
    other.unlink()
    assert {step for _, step, _ in events(other.parent).values()} == {2}
    assert [p.name for p in tmp_path.iterdir()] == ["tensorboard"]


@pytest.mark.medium
def test_a_full_disk_gives_a_one_line_error(tmp_path):
    rng = np.random.default_rng(0)
    results = example.results(rng, [f"class {i}" for i in range(30)])
    with (
        small_disk_at(tmp_path / "disk", size="16k") as disk,
        pytest.raises(
            OutputError, match=r"cannot write .*tensorboard: .*[Nn]o space left"
        ) as found,
    ):
        write.write_tensorboard(disk, results, example.pictures(rng, results))
    assert "\n" not in str(found.value)
