"""Models in the package: their names, what lies there, and what they generate."""

import json

import numpy as np
import pytest
from PIL import Image

import fsdit
from experiments.shipping.examples import NUM_SAMPLES, slug
from fsdit.data.layout import read_dataset_info
from fsdit.data.readers import split_images
from fsdit.errors import DataError
from fsdit.weights import shipped
from tests.programs import ROOT, run_module

GLYPHS = ROOT / "fsdit" / "weights" / "glyphs"
# As in what `python -m experiments.shipping.weights` writes beside the weights.
SAMPLES = ROOT / "tests" / "weights" / "glyphs.png"
FIRST = min(shipped.examples("glyphs"))
MAX_BYTES = 3_000_000


@pytest.mark.parametrize(
    ("model", "place"),
    [
        ("glyphs", GLYPHS),
        ("own", "own"),  # a folder that is there
        ("./glyphs", "./glyphs"),
        ("runs/exported", "runs/exported"),  # reading it says that there is no such file
        ("gs://bucket/exported", "gs://bucket/exported"),
    ],
)
def test_a_model_is_named_by_its_path_or_its_name(tmp_path, monkeypatch, model, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    assert shipped.located(model) == place


def test_a_folder_comes_before_a_model_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glyphs").mkdir()
    assert shipped.located("glyphs") == "glyphs" and not shipped.is_shipped("glyphs")
    with pytest.raises(DataError, match=r"glyphs/config\.json: no such file"):
        fsdit.load("glyphs")


@pytest.mark.parametrize("name", ["glyps", "x" * 5000])
def test_an_unknown_name_gives_one_line_with_the_names_that_exist(name):
    with pytest.raises(DataError, match=r"which has: glyphs$") as caught:
        shipped.located(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", shipped.names())
def test_a_model_in_the_package_is_small_and_says_what_it_is(name):
    folder = shipped.HERE / name
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < MAX_BYTES
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["data"]["dataset_dir"] == "glyphs"  # no folder of a machine
    card = (folder / "README.md").read_text()
    assert "DejaVu" in card and "STIX" in card  # the fonts of the dataset, by their licences
    sets = shipped.examples(name)
    assert len(sets) >= 5 and all(len(files) == 5 for files in sets.values())


@pytest.mark.medium
def test_example_supports_are_characters_that_training_never_saw(glyphs):
    info = read_dataset_info(glyphs)
    images, split = split_images(glyphs, info, "test"), info.split("test")
    named = {slug(character): i for i, character in enumerate(split.classes)}
    for name, files in shipped.examples("glyphs").items():
        those = [images[i].tobytes() for i in split.class_range(named[name])]
        for file in files:
            with Image.open(file) as picture:
                assert picture.tobytes() in those, file


@pytest.mark.medium
def test_the_weights_belong_to_the_code(tmp_path):
    """They generate what they did when they were made, up to the rounding of a machine."""
    output = tmp_path / "grid.png"
    example = shipped.examples("glyphs")[FIRST][0].parent
    flags = (f"--supports={example}", f"--num_samples={NUM_SAMPLES}", f"--output={output}")
    done = run_module("fsdit.sample", "--model=glyphs", *flags, "--singles", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(output.with_suffix(".json").read_text())
    assert facts["model"] == "glyphs"
    made = np.stack([np.asarray(Image.open(tmp_path / name)) for name in facts["singles"]])
    with Image.open(SAMPLES) as picture:
        recorded = np.stack(np.split(np.asarray(picture), NUM_SAMPLES, axis=1))
    apart = np.abs(made.astype(int) - recorded).mean((1, 2))
    assert apart.max() < 2
    # Samples of other noise are far away by this measure.
    assert np.abs(made.astype(int) - recorded[::-1]).mean((1, 2)).min() > 10
