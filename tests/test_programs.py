"""Each program as its user starts it: in a new interpreter, not in a fork."""

import re

import pytest

from tests.programs import ROOT, run_module

pytestmark = pytest.mark.medium

# module -> (flags that cannot work, a word of the error line)
WRONG = {
    "fsdit.main": (["--config=none.py", "--workdir={new}"], "none.py"),
    "fsdit.app": (["--model=glyps"], "has: glyphs"),
    "fsdit.sample": (["--workdir={empty}", "--supports={empty}", "--output=a.jpg"], "a.jpg"),
    "fsdit.evaluate": (["--workdir={empty}", "--output={new}"], "no checkpoint"),
    "fsdit.export": (["--workdir={empty}", "--output={new}"], "no checkpoint"),
    "fsdit.plan": (["--config=none.py"], "none.py"),
    "data_prep.convert": (["--input={empty}/none", "--output_dir={new}"], "none"),
    "data_prep.emoji": (["--packages={empty}", "--output_dir={new}"], "npm pack"),
    "data_prep.encode": (["--dataset_dir={empty}", "--encoder={empty}"], "dataset.json"),
    "data_prep.episodes": (["--dataset_dir={empty}"], "--sets_per_class"),
    "data_prep.glyphs": (["--output_dir={new}", "--image_size=25"], "image_size"),
    "data_prep.inspect": (["--dataset_dir={empty}", "--output={new}.png"], "dataset.json"),
    "data_prep.verify": (["--dataset_dir={empty}"], "dataset.json"),
    "fsdit.launch.local": (["--", "--config=none.py"], "--workdir"),
}


@pytest.mark.parametrize("module", WRONG)
def test_a_users_error_gives_one_line_and_status_1(module, tmp_path):
    flags, word = WRONG[module]
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "new": tmp_path / "new"}
    done = run_module(module, *(flag.format(**places) for flag in flags), real=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.fullmatch(rf"error: .*{re.escape(word)}.*\n", done.stderr), done.stderr
    assert not (tmp_path / "new").exists()


def test_every_program_is_in_the_table():
    programs = {
        f"{package}.{path.stem}"
        for package, folder in (("fsdit", ROOT / "fsdit"), ("data_prep", ROOT / "data_prep"))
        for path in folder.glob("*.py")
        if "program.run(main" in path.read_text()
    }
    assert programs <= WRONG.keys()
