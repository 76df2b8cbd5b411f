"""Which names of workdirs a run accepts, and that a run is alone in its workdir."""

from pathlib import Path

import pytest

from fsdit.errors import EXIT_HELD, ConfigError
from fsdit.training.checkpoints.workdir import check_workdir
from tests.conftest import experiment_file
from tests.processes import finish, rows, start, wait_for_step

REFUSED = {
    "lr[1]": "pattern",
    "lr[!1]/run": "pattern",
    "[": "pattern",
    "a*": "pattern",
    "**": "pattern",
    "a?b/c": "pattern",
    "a\\b": "pattern",
    "gs://bucket/run": "gs: names no local folder",
    "s3://bucket": "s3: names no local folder",
    "foo+bar://x/y": "names no local folder",
    "file:///tmp/x": "file: names no local folder",
    "a\nb": "cannot be printed",
    "a\0b": "cannot be printed",
    "a\x1b[31mb": "pattern",
    "a\x07b": "cannot be printed",
    "a\u2028b": "cannot be printed",
    "a\udcffb": "cannot be printed",
    "x" * 300: "too long",
    "file": "is a file",
    "file/below/it": "is a file",
}
TAKEN = [
    "run",
    "a b",
    "ünï",
    "名前\u3000二",
    "lr=1e-4",
    "{a}",
    "a]b",
    "~x",
    "a:b",
    "50%",
    "#1",
    "'q'",
]


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_a_library_would_misread_is_refused_in_one_line(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=REFUSED[name]) as found:
        check_workdir(tmp_path / name)
    assert str(found.value).isprintable()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", TAKEN)
def test_other_names_are_accepted(tmp_path, name):
    check_workdir(tmp_path / name)
    (tmp_path / name).mkdir()
    check_workdir(tmp_path / name)


def test_the_folders_above_the_workdir_count_too(tmp_path, monkeypatch):
    (tmp_path / "lr[1]").mkdir()
    monkeypatch.chdir(tmp_path / "lr[1]")
    with pytest.raises(ConfigError, match="pattern"):
        check_workdir(Path("run"))


@pytest.mark.large
def test_a_second_run_in_a_workdir_gives_one_line_and_leaves_the_first(tmp_path, small_config):
    experiment, workdir = (
        experiment_file(tmp_path / "experiment.py", small_config),
        tmp_path / "run",
    )
    flags = ("--config.train.num_steps=150", "--config.train.eval_interval=1000")
    first = start(experiment, workdir, *flags)
    wait_for_step(first, workdir, 3)
    status, output = finish(start(experiment, workdir, *flags))
    assert first.poll() is None, "the first run was too short"
    assert status == EXIT_HELD
    assert f"run is in use by process {first.pid} on " in output.splitlines()[-1]
    status, output = finish(first)
    assert status == 0, output
    assert [row["step"] for row in rows(workdir)] == list(range(1, 151))
    assert not (workdir / "lock").exists()
    status, output = finish(start(experiment, workdir, *flags))
    assert status == 0 and "is finished" in output
