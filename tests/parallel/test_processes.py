import socket
import subprocess
import sys
import time

import pytest

from fsdit.errors import ConfigError
from fsdit.launch.pod import Pod
from fsdit.parallel import processes
from tests.programs import environment, run_module, start_program

ALONE = "1 processes, agreed True, distributed False, devices all\n"


@pytest.mark.medium
def test_a_process_with_a_defect_does_not_wait_for_the_others_to_leave(capfd):
    """JAX alone waits five minutes at a barrier that the other processes never reach."""
    start = time.monotonic()
    with Pod([sys.executable, "-m", "tests.parallel.failing"], 2, environment()) as pod:
        while not pod.ended() and time.monotonic() < start + 120:
            pod.listen(1.0)
        ended = pod.ended()
        assert 0 in ended and ended[0].status == 1 and not ended[0].error
    output = capfd.readouterr().out
    assert "[0] Traceback" in output and "[0] RuntimeError: a defect" in output


WRONG = {
    "half a pod": (("127.0.0.1:1", 2, None), "go together"),
    "no count": (("127.0.0.1:1", None, 0), "go together"),
    "beyond the last": (("127.0.0.1:1", 2, 2), "--process_id=2 is not below"),
    "beyond the only one": ((None, 1, 1), "--process_id=1 is not below"),
    "no port": (("127.0.0.1", 2, 0), "is not HOST:PORT"),
    "no host": ((":1234", 2, 0), "is not HOST:PORT"),
    "port 0": (("127.0.0.1:0", 2, 0), "is not HOST:PORT"),
    "alone, no port": (("127.0.0.1", 1, 0), "is not HOST:PORT"),
}


@pytest.mark.parametrize(("given", "words"), WRONG.values(), ids=WRONG.keys())
def test_impossible_flags_of_a_pod_are_named(given, words):
    with pytest.raises(ConfigError, match=words):
        processes.start(*given)


# (environment, flags of the program, its output).
PLACES = {
    "nothing": ({}, [], ALONE),
    "a proxy": ({"https_proxy": "http://127.0.0.1:9"}, [], ALONE),
    "alone by a flag": ({"OMPI_COMM_WORLD_SIZE": "4"}, ["--num_processes=1"], ALONE),
    "a Slurm task": (
        {
            **{"SLURM_JOB_ID": "99", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "127.0.0.1"},
            **{"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        },
        [],
        ALONE,
    ),
    "a Kubernetes pod": ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, [], ALONE),
}


@pytest.mark.medium
@pytest.mark.parametrize(("said", "flags", "output"), PLACES.values(), ids=PLACES.keys())
def test_a_process_that_is_alone_needs_no_cluster(said, flags, output):
    result = run_module("tests.parallel.joining", *flags, env={**environment(), **said}, timeout=90)
    assert (result.returncode, result.stdout) == (0, output), result.stderr
    assert not result.stderr


# (environment of a cluster that JAX cannot use, whether the process then runs alone with a
# warning, words of the warning or error).
ORTE = "OMPI_MCA_orte_hnp_uri"
UNCLEAR = {
    "Open MPI, no number": ({ORTE: "?"}, True, "cannot be made out (ValueError"),
    "Open MPI, no address": ({ORTE: "4096.0;ib://x"}, True, "cannot be made out (RuntimeError"),
    "Open MPI, no rank": ({ORTE: "4096.0;tcp://127.0.0.1:1"}, True, "(KeyError"),
    "Slurm, no number": (
        {
            **{"SLURM_JOB_ID": "99", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "two"},
            **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        },
        True,
        "(ValueError",
    ),
    "a word for a device": ({"JAX_LOCAL_DEVICE_IDS": "first"}, True, "(ValueError"),
    "one of several": ({ORTE: "?", "OMPI_COMM_WORLD_SIZE": "4"}, False, "one process of 4"),
    "an MPI that JAX does not know": ({"PMI_SIZE": "2"}, False, "PMI_SIZE says"),
    "a job's second pod": (
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
        False,
        "JOB_COMPLETION_INDEX says",
    ),
}


@pytest.mark.medium
@pytest.mark.parametrize(("said", "alone", "words"), UNCLEAR.values(), ids=UNCLEAR.keys())
def test_a_cluster_that_jax_cannot_use_gives_one_line(said, alone, words):
    result = run_module("tests.parallel.joining", env={**environment(), **said}, timeout=90)
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: " if alone else "error: ") and words in line
    assert (result.returncode, result.stdout) == ((0, ALONE) if alone else (1, ""))


@pytest.mark.medium
@pytest.mark.parametrize("host", ["127.0.0.1", socket.gethostname()])
def test_the_processes_of_a_pod_connect_whatever_proxy_is_set(host):
    with socket.socket() as probe:
        probe.bind(("", 0))
        address = f"{host}:{probe.getsockname()[1]}"
    proxies = {"https_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    pod = [
        start_program(
            "tests.parallel.joining",
            *(f"--coordinator_address={address}", "--num_processes=2", f"--process_id={i}"),
            env={**environment(), **proxies},
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in pod]
    except subprocess.TimeoutExpired:
        for process in pod:
            process.kill()
        raise
    assert [process.returncode for process in pod] == [0, 0], outputs
    for output in outputs:
        assert "2 processes, agreed True, distributed True" in output
        warned = "warning: https_proxy and HTTP_PROXY set: " in output
        assert warned == (host != "127.0.0.1")


def test_a_tpu_worker_that_cannot_ask_for_the_others_does_not_train_alone(monkeypatch):
    def refuse(*arguments, **choices):
        raise ConnectionError("metadata.google.internal")

    monkeypatch.setattr(processes.jax.distributed, "initialize", refuse)
    monkeypatch.setattr(processes.clusters, "on_tpu", lambda: True)
    with pytest.raises(ConfigError, match=r"may be one of several.*--num_processes=1"):
        processes.start()
