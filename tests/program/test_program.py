"""What all programs share: path flags, errors of one line, and output that is safe to show."""

import errno
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from fsdit import program
from fsdit.config import Config, DataConfig, to_dict
from fsdit.errors import ConfigError, DataError
from fsdit.program import terminal
from fsdit.text import harmless
from tests.programs import ROOT, environment, run_module


@pytest.fixture
def flag_values(monkeypatch):
    """An empty set of absl flags, in which the test defines its own."""
    values = flags.FlagValues()
    define = flags.DEFINE

    def defined(*args, **options):
        return define(*args, flag_values=values, **options)

    monkeypatch.setattr(flags, "DEFINE", defined)
    return values


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~/x", "{home}/x"),
        ("~", "{home}"),
        ("x/~", "x/~"),
        ("./~x", "./~x"),
        ("/a/b", "/a/b"),
        ("gs://bucket/~", "gs://bucket/~"),
        ("google/siglip2", "google/siglip2"),
        ("", ""),
    ],
)
def test_a_leading_tilde_is_the_home_folder(flag_values, tmp_path, monkeypatch, given, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    one = program.define_path("one", None, "A path.")
    many = program.define_paths("many", "Paths.")
    flag_values(["program", f"--one={given}", f"--many={given},~/y"])
    expected = expected.format(home=tmp_path)
    assert one.value == expected
    assert many.value == [expected, f"{tmp_path}/y"]


def test_a_leading_tilde_of_a_default_is_the_home_folder(flag_values, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    one = program.define_path("one", "~/x", "A path.")
    flag_values(["program"])
    assert one.value == f"{tmp_path}/x"


def test_a_file_is_no_folder_and_an_unknown_home_is_reported(flag_values, tmp_path):
    (tmp_path / "file").write_text("x")
    folder = program.define_path("workdir", None, "A folder.", folder=True)
    for given, message in (
        (f"{tmp_path}/file", "--workdir=.*file is no folder"),
        ("~nobody_of_this_name/x", "no home directory is known for ~nobody"),
    ):
        with pytest.raises(flags.IllegalFlagValueError, match=message):
            flag_values(["program", f"--workdir={given}"])
    flag_values(["program", f"--workdir={tmp_path}/new"])
    assert folder.value == f"{tmp_path}/new"


@pytest.mark.parametrize("given", ["nan", "inf", "-inf", "1e999", "x", "-1", "11"])
def test_a_number_is_finite_and_within_its_bounds(flag_values, given):
    number = program.define_float("number", 2.0, "A number.", 0.0, 10.0)
    with pytest.raises(flags.IllegalFlagValueError, match=f"--number={given}"):
        flag_values(["program", f"--number={given}"])
    flag_values(["program", "--number=1e1"])
    assert number.value == 10.0


# Flags that are paths, or may be: none of these is a plain string.
PATH_FLAGS = {"workdir", "model", "supports", "output", "output_dir", "dataset_dir", "input", "csv",
              "encoder", "vae", "json", "config"}  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [p for folder in ("fsdit", "data_prep", "experiments") for p in (ROOT / folder).rglob("*.py")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_program_defines_a_path_as_a_plain_string_or_a_number_without_bounds(path):
    text = path.read_text()
    assert "DEFINE_float(" not in text
    for name in PATH_FLAGS:
        for kind in ("string", "list", "multi_string"):
            for space in ("", "\n    "):
                assert f'DEFINE_{kind}({space}"{name}"' not in text


def resolved(flag_values, *given):
    workdir = program.define_path("workdir", None, "Directory of the run.", folder=True)
    resolve = program.define_config(workdir)
    flag_values(["program", *given])
    return resolve()


def experiment(folder: Path, text: str) -> str:
    file = folder / "mine.py"
    file.write_text(f"from fsdit.config import *\n\ndef get_config():\n    return {text}\n")
    return f"--config={file}"


def test_a_configuration_has_the_name_of_its_dataset_and_absolute_paths(
    flag_values, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flag = experiment(tmp_path, "Config(data=DataConfig(dataset_dir='sets/birds'))")
    config = resolved(flag_values, flag)
    assert config.name == "birds"
    assert config.data.dataset_dir == f"{tmp_path}/sets/birds"


def test_a_name_that_the_experiment_gives_stays(flag_values, tmp_path):
    flag = experiment(tmp_path, "Config(name='mine', data=DataConfig(dataset_dir='birds'))")
    assert resolved(flag_values, flag).name == "mine"


def test_a_run_resumes_with_its_saved_settings(flag_values, tmp_path):
    held = Config(name="held", seed=7, data=DataConfig(dataset_dir="/sets/birds"))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(held)))
    assert resolved(flag_values, f"--workdir={tmp_path}") == held


def test_a_workdir_that_holds_nothing_needs_an_experiment(flag_values, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: no such file to go on with.*--config="):
        resolved(flag_values, f"--workdir={tmp_path}")


class JaxRuntimeError(RuntimeError):
    """Has the name of JAX's own error."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("x: wrong"), "x: wrong"),
        *(
            (OSError(number, os.strerror(number), "/a/file"), f"/a/file: {os.strerror(number)}")
            for number in (errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.ELOOP,
                           errno.ENAMETOOLONG, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE)
        ),
        (OSError(errno.ENOSPC, "No space"), "[Errno 28] No space"),
        (OSError(errno.ENOENT, "No such file", "/a", None, "/b"), "/a -> /b: No such file"),
        (MemoryError("Unable to allocate 8 TiB"), "out of memory: Unable to allocate 8 TiB; ask"),
        (MemoryError(), "out of memory: the machine has no more"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"), "out of memory on a device: "),
    ],
)  # fmt: skip
def test_what_a_user_can_fix_is_reported_in_one_line(error, message):
    assert program.users_error(error).startswith(message)


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), RecursionError(), KeyError("x"), JaxRuntimeError("INTERNAL"), OSError("odd"),
     OSError(errno.EINVAL, "Invalid argument", "/a")],
)  # fmt: skip
def test_a_defect_of_a_program_is_no_users_error(error):
    assert program.users_error(error) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 漢字\t\r\n", "plain ünïcode 漢字\t\r\n"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("a\u202eb\u2028c", r"a\u202eb\u2028c"),
    ],
)
def test_control_characters_are_shown_escaped(text, shown):
    assert harmless(text) == shown
    below = io.StringIO()
    stream = terminal.SafeStream(below)
    assert stream.write(text) == len(shown)
    assert below.getvalue() == shown


def test_a_reader_that_closed_the_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as below:
        stream = terminal.SafeStream(below)
        stream.write("x" * 100_000)
        print("y", file=stream, flush=True)
        stream.flush()


OUTPUTS = {
    "closed": (">&-", 0),
    "both closed": (">&- 2>&-", 1),
    "a reader that leaves": ("| true", 0),
    "a reader of both that leaves": ("2>&1 | true", 1),
}


@pytest.mark.medium
@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_that_nobody_reads_changes_no_status(glyphs, output):
    shell, expected = OUTPUTS[output]
    folder = glyphs / "nowhere" if expected else glyphs
    module = [sys.executable, "-m", "data_prep.verify", "--fast", "--workers=0"]
    command = shlex.join([*module, f"--dataset_dir={folder}"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {shell}"],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expected
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr


@pytest.mark.medium
def test_a_program_reports_a_users_mistake_in_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    typo = experiment(tmp_path, "Config(train=TrainConfig(num_stepss=3))")
    for given, message in (
        ([typo, f"--workdir={tmp_path}/w"], "mine.py:4: config.train.num_stepss: no such field"),
        ([typo, f"--workdir={tmp_path}/file"], f"{tmp_path}/file is no folder"),
        ([f"--workdir={tmp_path}/w"], "w/config.json: no such file to go on with"),
        ([typo, f"--workdir={tmp_path}/{'w' * 300}"], "File name too long"),
        ([typo, "--config.seed", "3"], "--config.seed: write --config.seed=VALUE"),
    ):
        done = run_module("fsdit.main", *given)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) in ([], ["__pycache__"])
