"""Processes of a job: bringing them up, hearing of a preemption, leaving."""

import socket

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from fsdit.errors import ConfigError

_WEEK_MS = 7 * 24 * 3600 * 1000


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 100,
) -> None:
    """Brings up jax.distributed, always: it is what hears SIGTERM.

    With flags: those. Without: what a TPU pod, Slurm, MPI or Kubernetes announces;
    where nothing does, this process alone on a free loopback port. heartbeat_timeout:
    seconds after which a silent process is taken for lost, and the others abort.
    Raises ConfigError for an incomplete or impossible set of flags.
    """
    given = (coordinator_address, num_processes, process_id)
    if any(v is not None for v in given):
        if any(v is None for v in given):
            raise ConfigError(
                "--coordinator_address, --num_processes and --process_id go together: give all"
            )
        if not 0 <= process_id < num_processes:
            raise ConfigError(
                f"--process_id={process_id} is not below --num_processes={num_processes}"
            )
        if not coordinator_address.rpartition(":")[2].isdigit():
            raise ConfigError(f"--coordinator_address={coordinator_address} is not HOST:PORT")
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_timeout)
    except ValueError:  # no cluster announces itself
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        jax.distributed.initialize(
            address, 1, 0, coordinator_bind_address=address, cluster_detection_method="deactivate"
        )


def is_main_process() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def preemption_reached(step: int) -> bool:
    """Whether to save and leave at this step. Every process asks, at every step."""
    return multihost_utils.reached_preemption_sync_point(step)


def agree(value: bool) -> bool:
    """True when the value is true on every process. All processes must call it."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(value).all())


def wait_for_all(name: str) -> None:
    """Returns once every process has come here, however late.

    By the coordination service: collectives of the CPU backend give up after 30 seconds.
    """
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=_WEEK_MS)


def stop() -> None:
    """Leaves the job once every process has come this far."""
    jax.distributed.shutdown()
