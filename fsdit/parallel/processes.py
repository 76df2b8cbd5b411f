"""The processes of a job: joining, agreeing, learning of a preemption, and leaving."""

import itertools
import os
import sys
import warnings

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from fsdit.errors import ConfigError, with_type
from fsdit.parallel import backend, clusters, preemption

_WEEK_MS = 7 * 24 * 3600 * 1000
_FLAGS = "--coordinator_address, --num_processes and --process_id"

# Numbers of the calls of `preemption_reached` in this start.
_questions = itertools.count(1)


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 100,
) -> None:
    """Joins the processes of this job, and opens the devices.

    The first three arguments are the flags of a program. Without them, the job is the one that
    a TPU pod, Slurm, MPI or Kubernetes announces. Where nothing announces one, or
    num_processes is 1, this process is alone and needs no jax.distributed.
    heartbeat_timeout: seconds after which a silent process counts as lost, and the others
    abort. Raises ConfigError for an incomplete or impossible set of flags, for an announced
    job that cannot be joined, and where there are no devices.
    """
    backend.pin_settings()
    given = (coordinator_address, num_processes, process_id)
    if num_processes == 1:
        _check_alone(coordinator_address, process_id)
    elif any(v is not None for v in given):
        _check_flags(*given)
        _join(coordinator_address, num_processes, process_id, heartbeat_timeout)
    else:
        _join_announced(heartbeat_timeout)
    if jax.distributed.is_initialized():
        preemption.hand_over_to_jax()
    else:
        preemption.leave_at_once(True)
    backend.open_devices()


def _check_alone(coordinator_address: str | None, process_id: int | None) -> None:
    if process_id not in (None, 0):
        raise ConfigError(f"--process_id={process_id} is not below --num_processes=1")
    if coordinator_address is not None:
        _check_address(coordinator_address)


def _check_flags(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    if None in (coordinator_address, num_processes, process_id):
        raise ConfigError(f"{_FLAGS} go together: give all")
    if not 0 <= process_id < num_processes:
        raise ConfigError(f"--process_id={process_id} is not below --num_processes={num_processes}")
    _check_address(coordinator_address)


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"--coordinator_address={address} is not HOST:PORT")


def _join(address: str | None, count: int | None, number: int | None, heartbeat: int) -> None:
    """Joins through jax.distributed; where address is None, JAX finds the job by itself."""
    jax.config.update("jax_check_proxy_envs", False)  # no warning: proxies are removed below
    with clusters.without_proxies(os.environ) as proxies:
        jax.distributed.initialize(
            address,
            count,
            number,
            local_device_ids=clusters.local_devices(os.environ) if address is None else None,
            heartbeat_timeout_seconds=heartbeat,
        )
    if proxies and not clusters.is_loopback((address or "").rpartition(":")[0]):
        _warn(f"{' and '.join(proxies)} set: the processes of this job meet without it")


def _join_announced(heartbeat: int) -> None:
    """Joins the job that JAX finds by itself; where it finds none, this process is alone."""
    variable, count = clusters.count_of_processes(os.environ)
    if count == 1:
        return
    clusters.set_port(os.environ)
    try:
        # Outside of Kubernetes, JAX warns about that in five lines.
        with warnings.catch_warnings(action="ignore"):
            _join(None, None, None, heartbeat)
    except Exception as error:  # variables and servers of a cluster can cause any exception
        if jax.distributed.is_initialized():
            raise  # the job was found, but its processes did not find each other
        nothing = isinstance(error, ValueError) and "should be defined" in str(error)
        if count > 1 or (clusters.on_tpu() and not nothing):
            who = f"{variable} says that this is one process of {count}"
            who = who if count > 1 else "this TPU machine may be one of several"
            reason = "JAX does not know who started it" if nothing else with_type(error)
            raise ConfigError(
                f"{who}, and it cannot join the others ({reason}): give each {_FLAGS}, or "
                "--num_processes=1 to train alone"
            ) from None
        if not nothing:
            _warn(f"this machine's cluster cannot be made out ({with_type(error)}): training alone")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def is_main_process() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def preemption_reached() -> bool:
    """Whether to save and leave now. All processes must call it equally often.

    When a notice comes, JAX lets all processes leave at the call after the last one that any of
    them has made. It tells calls apart by a number, which here counts from 1 in each start.
    (The number of the step would not do: a process that resumes at a late step would never
    make the call number 1, at which JAX lets all leave if none has made a call yet.)
    """
    number = next(_questions)
    if jax.distributed.is_initialized():
        return multihost_utils.reached_preemption_sync_point(number)
    return preemption.received()


def agree(value: bool) -> bool:
    """Whether the value is true on every process. All processes must call it."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(value).all())


def same(number: int) -> bool:
    """Whether every process gives the same number below 2**32. All processes must call it."""
    if jax.process_count() == 1:
        return True
    numbers = multihost_utils.process_allgather(np.uint32(number))
    return bool((numbers == numbers.flat[0]).all())


def wait_for_all(name: str) -> None:
    """Returns once every process has called it with this name, however late.

    It uses the coordination service, since collectives of the CPU backend give up after 30
    seconds.
    """
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=_WEEK_MS)


def stop() -> None:
    """Leaves the job once every process has called it."""
    jax.distributed.shutdown()
