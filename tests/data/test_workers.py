"""Input workers: how their processes end, and the shared memory that carries their batches."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.programs import ROOT, environment

pytestmark = pytest.mark.medium


def program(glyphs, batch_size, *around):
    """Starts tests.data.working. around: words of the command line before it."""
    command = [sys.executable, "-m", "tests.data.working", glyphs, batch_size]
    return subprocess.Popen(
        [*around, *map(str, command)],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def killed_at_last(process):
    """Kills the process at the end: a test that failed would wait for it for ever."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def shared_memory(processes):
    """Files of /dev/shm that the processes hold."""
    paths = (entry.path for process in processes for entry in process.memory_maps())
    return {Path(path) for path in paths if path.startswith("/dev/shm/psm_")}


def test_workers_leave_signals_to_the_program_and_end_with_it(glyphs):
    with killed_at_last(program(glyphs, 64)) as process:
        assert process.stdout.readline() == "ready\n"
        me = psutil.Process(process.pid)
        children = me.children(recursive=True)
        workers = [child for child in children if "--multiprocessing-fork" in child.cmdline()]
        assert len(workers) == 2
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for worker in workers:
                worker.send_signal(number)
        assert not psutil.wait_procs(workers, timeout=1)[0]
        held = shared_memory([me, *workers])
        process.kill()
        assert not psutil.wait_procs(children, timeout=30)[1]
    assert held and not any(path.exists() for path in held)


# 16k is too little for what workers need at their start, which the system refuses; 1m is too
# little for a batch, which kills the worker.
@pytest.mark.parametrize(
    ("room", "batch_size"), [("16k", 64), pytest.param("1m", 512, marks=pytest.mark.large)]
)
def test_a_small_dev_shm_is_reported_in_one_line_that_names_it(glyphs, room, batch_size):
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    mounted = f'mount -t tmpfs -o size={room} tmpfs /dev/shm && exec "$@"'
    with program(glyphs, batch_size, "unshare", "-m", "bash", "-c", mounted, "bash") as process:
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith("error: /dev/shm (") and "config.data.workers=2" in line
