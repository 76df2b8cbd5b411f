"""What visitors of the page may send, and what becomes of it."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from fsdit.errors import ConfigError, DataError
from fsdit.page import session
from fsdit.page.session import Request
from tests.page.visits import drawing, reader, saved, some_pictures, stroke


def test_a_drawing_and_the_same_picture_as_a_file_are_the_same_support(tmp_path):
    model, file = reader(), saved(tmp_path / "stroke.png", stroke())
    none = session.no_supports(model)
    drawn = session.with_drawing(model, none, drawing(stroke()))
    np.testing.assert_array_equal(session.with_files(model, none, [file]), drawn)
    np.testing.assert_array_equal(drawn, model.read_supports([file]))
    assert drawn[0, 4, 4, 0] < 50 and drawn[0, -1, -1, 0] == 255  # dark on white, where it was


def test_supports_are_gathered_in_order_and_taken_back(tmp_path):
    model = reader()
    files = [saved(tmp_path / f"{i}.png", stroke((60 + 40 * i, 90))) for i in range(3)]
    three = session.with_files(model, session.no_supports(model), files)
    four = session.with_drawing(model, three, drawing(stroke()))
    assert four.shape == (4, 24, 24, 1)
    np.testing.assert_array_equal(session.without_last(four), three)
    np.testing.assert_array_equal(session.inverted(session.inverted(four)), four)
    assert (session.inverted(four).astype(int) + four == 255).all()
    assert session.without_last(session.no_supports(model)).shape == (0, 24, 24, 1)


def test_a_model_of_colours_keeps_them():
    model = reader(channels=3)
    red = Image.new("RGB", (100, 100), "white")
    red.paste("red", (20, 20, 80, 80))
    (seen,) = session.with_drawing(model, session.no_supports(model), drawing(red))
    assert seen[12, 12].tolist() == [255, 0, 0]


def text_file(folder):
    file = folder / "notes<b>.png"
    file.write_text("not a picture")
    return file


def large_file(folder):
    file = folder / "large.png"
    with file.open("wb") as opened:
        opened.truncate(session.MAX_FILE_BYTES + 1)
    return file


WRONG_FILES = {
    "no picture": (text_file, r"notes<b>\.png: not an image of a known format"),
    "missing": (lambda folder: folder / "gone.png", r"gone\.png: No such file or directory"),
    "many bytes": (large_file, r"large\.png: more than 10 MB: name a smaller file"),
    "many pixels": (
        lambda folder: saved(folder / "wide.png", Image.new("1", (2**15, 2**11))),
        r"wide\.png: 32768 x 2048 pixels, more than 32 million: name a smaller picture",
    ),
    "one colour": (
        lambda folder: saved(folder / "white.png", Image.new("L", (50, 50), 255)),
        r"white\.png is empty: it has one colour only",
    ),
    "folder": (lambda folder: folder, r"[\w-]+: not a regular file"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_is_named_without_its_folder(tmp_path, case):
    make, message = WRONG_FILES[case]
    model, before = reader(), some_pictures(2)
    good = saved(tmp_path / "good.png", stroke())
    with pytest.raises(DataError) as caught:
        session.with_files(model, before, [good, make(tmp_path)])
    assert re.fullmatch(message, str(caught.value)), caught.value


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (None, "did not arrive"),
        ("", "did not arrive"),
        ("data:text/html;base64,AAAA", "did not arrive"),
        ("data:image/png;base64,A", "did not arrive"),
        ("data:image/png;base64," + "A" * session.MAX_FILE_BYTES, "did not arrive"),
        ("data:image/png;base64,AAAA", "the drawing: not an image of a known format"),
        (drawing(Image.new("RGB", (280, 280), "white")), "the drawing is empty"),
    ],
)
def test_what_is_no_drawing_is_refused(sent, message):
    model = reader()
    with pytest.raises(DataError, match=message):
        session.with_drawing(model, session.no_supports(model), sent)


def test_there_are_five_supports_at_most(tmp_path):
    model, five = reader(), some_pictures(5)
    file = saved(tmp_path / "stroke.png", stroke())
    with pytest.raises(DataError, match="6 pictures are more than 5: remove some"):
        session.with_files(model, five, [file])
    with pytest.raises(DataError, match="there are 5 supports already: remove one"):
        session.with_drawing(model, five, drawing(stroke()))


@pytest.mark.parametrize(
    ("sent", "wrong"),
    [
        ((16, 2, 20, 0), ""),
        ((1, 0.5, 1.0, 2**32 - 1), ""),
        ((0, 2, 20, 0), "number of samples: choose a number from 1 to 32"),
        ((33, 2, 20, 0), "number of samples"),
        ((1.5, 2, 20, 0), "number of samples: 1.5 is no whole number"),
        ((16, float("nan"), 20, 0), "guidance: choose a number from 0 to 10"),
        ((16, 11, 20, 0), "guidance"),
        ((16, 2, 10**9, 0), "steps: choose a number from 1 to 100"),
        ((16, 2, "20", 0), "steps"),
        ((16, 2, True, 0), "steps"),
        ((16, 2, 20, -1), "seed"),
        ((16, 2, 20, 2**32), "seed"),
        ((16, 2, 20, None), "seed"),
    ],
)
def test_settings_are_bounded(sent, wrong):
    if not wrong:
        assert dataclasses.astuple(session.checked(*sent)) == sent
        return
    with pytest.raises(ConfigError, match=wrong):
        session.checked(*sent)


def test_the_models_own_sampling_is_changed_where_it_was_asked_for():
    own = reader().config.sampling
    changed = session.sampling_of(reader(), Request(4, 1.5, 9, 0))
    assert (changed.guidance_scale, changed.num_steps) == (1.5, 9)
    assert session.sampling_of(reader(), Request(4, 2.0, 7, 0)) == own


def test_samples_need_supports():
    model = reader()
    with pytest.raises(ConfigError, match="add one to five pictures first"):
        next(session.sampled(model, session.no_supports(model), Request(4, 2.0, 7, 0)))
