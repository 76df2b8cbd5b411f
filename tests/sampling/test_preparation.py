"""A run and its export prepare supports as the training images were prepared."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import fsdit
from fsdit.data.images.photos import Preparation, read_photo
from fsdit.data.layout import read_dataset_info, write_dataset_json
from fsdit.errors import DataError
from fsdit.sampling import exported
from fsdit.sampling.export_files import read_info
from fsdit.training.checkpoints import metadata
from fsdit.training.run import load_generator
from tests.conftest import one_block
from tests.training.checkpoints.saved_runs import save_run

PADDED = Preparation(background="#204060", resize="pad")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def workdir(folder, small_config):
    """The workdir of a run on a dataset of padded images, made once."""
    dataset, workdir = folder / "dataset", folder / "run"
    if not workdir.exists():
        shutil.copytree(small_config.data.dataset_dir, dataset)
        info = read_dataset_info(dataset)
        write_dataset_json(dataset, dataclasses.replace(info, preparation=PADDED))
        data = dataclasses.replace(small_config.data, dataset_dir=str(dataset))
        save_run(workdir, one_block(dataclasses.replace(small_config, data=data)))
        exported.save(folder / "exported", load_generator(workdir, {}))
    return workdir


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 2), np.uint8)
    Image.fromarray(pixels, "LA").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.medium
def test_a_run_and_its_export_prepare_supports_alike(workdir, picture):
    expected = read_photo(picture, 24, 1, PADDED)
    assert (expected != read_photo(picture, 24, 1)).any()
    for generator in (load_generator(workdir, {}), fsdit.load(workdir.with_name("exported"))):
        assert generator.preparation == PADDED
        np.testing.assert_array_equal(generator.read_supports([picture])[0], expected)


def edited_export(workdir, to, preparation):
    copy = shutil.copytree(workdir.with_name("exported"), to)
    values = json.loads((copy / "config.json").read_text())
    del values["preparation"]
    if preparation is not None:
        values["preparation"] = preparation
    (copy / "config.json").write_text(json.dumps(values))
    return copy


@pytest.mark.medium
def test_an_export_without_a_preparation_says_so_and_has_the_defaults(
    workdir, tmp_path, picture, capsys
):
    loaded = fsdit.load(edited_export(workdir, tmp_path / "old", None))
    assert loaded.preparation is None
    np.testing.assert_array_equal(
        loaded.read_supports([picture])[0],
        read_photo(picture, 24, 1, Preparation("white", "center_crop")),
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert "not recorded" in line and "--resize=center_crop --background=white" in line


@pytest.mark.medium
def test_a_run_keeps_the_preparation_when_its_dataset_is_gone(workdir, tmp_path, picture, capsys):
    lost = {"data.dataset_dir": str(tmp_path / "lost")}
    assert load_generator(workdir, lost).preparation == PADDED
    older = shutil.copytree(workdir, tmp_path / "older")
    without_dataset(older)
    assert load_generator(older, {}).preparation == PADDED  # from the dataset, which is there
    with pytest.raises(DataError, match=r"dataset\.json: no such file"):
        load_generator(older, lost)
    assert not capsys.readouterr().out


def without_dataset(workdir):
    """Removes what a checkpoint says of the dataset, as older versions wrote it."""
    meta, data = (workdir / "checkpoints" / "5" / name / "metadata" for name in ("meta", "data"))
    saved = json.loads(meta.read_text())
    del saved["dataset"], saved["digest"]
    sealed = metadata.seal(5, saved, json.loads(data.read_text()))
    for file, content in zip((meta, data), sealed, strict=True):
        file.write_text(json.dumps(content))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("preparation", "message"),
    [
        ({"background": "whyte", "resize": "pad"}, "preparation: .*whyte"),
        ({"background": 7, "resize": "pad"}, r"preparation\.background: .* 7"),
        ({"background": "white", "resize": "fill"}, r"preparation\.resize: .*fill"),
        ({"background": "white", "more": 1}, r"preparation\.more: "),
        ("white", "preparation: .*white"),
    ],
    ids=str,
)
def test_an_invalid_preparation_gives_one_line(workdir, tmp_path, preparation, message):
    copy = edited_export(workdir, tmp_path / "edited", preparation)
    with pytest.raises(DataError, match=f"config.json: {message}") as caught:
        read_info(copy)
    assert "\n" not in str(caught.value)
