"""What a visitor saves is enough to make the same picture again with fsdit.sample."""

import io
import itertools
import json
import shlex
import zipfile

import numpy as np
import pytest

import fsdit
from fsdit.page import downloads, session
from fsdit.page.session import Request
from fsdit.weights import shipped
from tests.page.visits import reader, some_pictures
from tests.programs import run_module


def unpacked(files, folder):
    with zipfile.ZipFile(io.BytesIO(files[downloads.ALL])) as archive:
        archive.extractall(folder)
    return json.loads((folder / downloads.SETTINGS).read_text())


def test_the_settings_are_those_that_were_asked_for(tmp_path):
    asked = Request(6, 1.5, 9, 3)
    given = (reader(), "glyphs", {"sampling.solver": "heun"}, some_pictures(2), asked)
    files = downloads.files(*given, some_pictures(6))
    facts = unpacked(files, tmp_path)
    assert (facts["num_samples"], facts["seed"]) == (6, 3)
    assert facts["sampling"]["guidance_scale"] == 1.5 and facts["sampling"]["num_steps"] == 9
    assert facts["overrides"]["sampling.solver"] == "heun"
    assert facts["model"] == "glyphs" and facts["version"] == fsdit.__version__
    found = reader().read_supports(tmp_path / name for name in facts["supports"][0]["files"])
    np.testing.assert_array_equal(found, some_pictures(2))
    assert downloads.files(*given, some_pictures(6)) == files


@pytest.mark.medium
def test_the_command_that_is_saved_makes_the_picture_again(tmp_path):
    model = fsdit.load("glyphs")
    _, chosen = min(shipped.examples("glyphs").items())
    supports = session.with_files(model, session.no_supports(model), chosen)
    asked = Request(10, 2.0, 2, 7)
    stages = list(session.sampled(model, supports, asked))
    assert len(stages) > 1 and len(stages[-1]) == 10
    for early, late in itertools.pairwise(stages):
        np.testing.assert_array_equal(late[: len(early)], early)

    facts = unpacked(downloads.files(model, "glyphs", {}, supports, asked, stages[-1]), tmp_path)
    python, minus, module, *flags = shlex.split(facts["command"])
    assert (python, minus) == ("python", "-m")
    done = run_module(module, *flags, devices=8, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / downloads.PICTURE).read_bytes()
