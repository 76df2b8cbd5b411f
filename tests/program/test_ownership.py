"""A folder has one owner, and another process takes it over only when the owner is gone."""

import os
import socket
import subprocess
import sys
import time

import pytest

from fsdit.errors import OutputError
from fsdit.program import ownership
from fsdit.program.ownership import owned

HOLDER = "tests.program.hold_folder"
HOST = socket.gethostname()


def marker(pid, host, start="1", mode="lease", duration="90.0"):
    return (
        f"filelock/2\npid={pid}\nhost={host}\nmode={mode}\ntoken=t\n"
        f"duration={duration}\nstart={start}\n"
    )


@pytest.fixture
def hold(tmp_path):
    """Starts a process that owns tmp_path / "run"."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-m", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "owned\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_an_owned_folder_is_refused_with_the_name_of_its_owner(tmp_path):
    with (
        owned(tmp_path / "run"),
        pytest.raises(
            OutputError, match=rf"run is in use by process {os.getpid()} on {HOST} since 2"
        ),
        owned(tmp_path / "run"),
    ):
        pytest.fail("owned twice")
    with owned(tmp_path / "run"), owned(tmp_path / "other"):
        pass
    assert list(tmp_path.iterdir()) == []  # folders that nobody wrote into are removed


def test_an_error_or_an_exit_frees_the_folder(tmp_path):
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), owned(tmp_path):
            raise error
    with owned(tmp_path, tmp_path / "beside.lock"):
        assert sorted(p.name for p in tmp_path.iterdir()) == ["beside.lock", "beside.lock.since"]


@pytest.mark.medium
def test_the_folder_of_a_killed_process_is_free_at_once(tmp_path, hold, monkeypatch):
    monkeypatch.setattr(ownership, "EXPIRY", 90.0)
    process = hold()
    with pytest.raises(OutputError, match=f"process {process.pid} on"), owned(tmp_path / "run"):
        pass
    process.kill()
    process.wait()
    began = time.monotonic()
    with owned(tmp_path / "run"):
        assert time.monotonic() - began < 5


LEFT = {
    "gone": marker(2**22 + 1, HOST),
    "another process has its process id": marker(os.getpid(), HOST, start="12345"),
}


@pytest.mark.parametrize("left", LEFT)
def test_a_lock_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path, left):
    (tmp_path / "lock").write_text(LEFT[left])
    began = time.monotonic()
    with owned(tmp_path):
        assert f"pid={os.getpid()}\n" in (tmp_path / "lock").read_text()
    assert time.monotonic() - began < 5 and not (tmp_path / "lock").exists()


def test_a_lock_of_another_machine_is_taken_over_without_a_heartbeat(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ownership, "EXPIRY", 0.5)
    monkeypatch.setattr(ownership, "_POLL", 0.05)
    (tmp_path / "lock").write_text(marker(os.getpid(), "elsewhere", duration="0.5"))
    with owned(tmp_path):
        pass
    assert f"in use by process {os.getpid()} on elsewhere: waiting" in capsys.readouterr().out


def test_a_lock_of_another_machine_with_a_heartbeat_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "_POLL", 0.05)
    lock = tmp_path / "lock"
    lock.write_text(marker(7, "elsewhere"))
    beats = iter(range(1, 100))
    monkeypatch.setattr(
        ownership.time, "sleep", lambda _: os.utime(lock, (10**9 + next(beats),) * 2)
    )
    with pytest.raises(OutputError, match="in use by process 7 on elsewhere"), owned(tmp_path):
        pass
    assert next(beats) < 4


@pytest.mark.parametrize("text", ["", "x", "\0" * 50, "filelock/2\n", marker("x", HOST)])
def test_a_lock_file_without_an_owner_is_taken_over(tmp_path, monkeypatch, text):
    monkeypatch.setattr(ownership, "EXPIRY", 0.5)
    monkeypatch.setattr(ownership, "_POLL", 0.05)
    (tmp_path / "lock").write_text(text)
    os.utime(tmp_path / "lock", (10**9, 10**9))
    with owned(tmp_path):
        pass


def test_where_no_lock_can_be_written_it_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*/file/lock: "), owned(tmp_path / "file"):
        pass


def test_a_process_that_lost_its_folder_exits(tmp_path, monkeypatch, capfd):
    left = []
    monkeypatch.setattr(ownership.os, "_exit", left.append)
    for reason in ("marker-missing", "refresh-failed"):
        ownership._lost(tmp_path, reason)
    assert left == [] and capfd.readouterr().out.count("warning: ") == 2
    ownership._lost(tmp_path, "owner-changed")
    assert left == [69] and "taken over by another process" in capfd.readouterr().err
