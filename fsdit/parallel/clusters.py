"""What the environment variables of a cluster say of this job's processes and devices.

JAX finds Slurm, Open MPI, TPU and Kubernetes jobs by itself (jax/_src/clusters). This module
answers what JAX leaves open: whether there is any other process, whether several were started
by a launcher that JAX does not know, which port each of two runs in one Slurm job takes, which
devices a task has, and how to keep the processes' traffic away from a proxy.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

# Variable with the number of processes -> variable that must be set beside it, or None.
# A batch script of Slurm sees the number of tasks too, but only srun starts that many.
_COUNTS = {
    "SLURM_NTASKS": "SLURM_STEP_NODELIST",
    "OMPI_COMM_WORLD_SIZE": None,
    "PMI_SIZE": None,  # MPICH, Intel MPI
    "MV2_COMM_WORLD_SIZE": None,
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
_FIRST_PORT, _PORTS = 61440, 4096  # the range that JAX uses under Slurm


def count_of_processes(environment: Mapping[str, str]) -> tuple[str, int]:
    """(variable, number of processes of this job) by the environment, or ("", 0).

    On Kubernetes and TPUs the number may be too small: only a server knows the right one.
    """
    for name, beside in _COUNTS.items():
        if environment.get(name, "").isdecimal() and (not beside or beside in environment):
            return name, int(environment[name])
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts:
        return "TPU_WORKER_HOSTNAMES", len(hosts.split(","))
    if "KUBERNETES_SERVICE_HOST" in environment:
        index = environment.get("JOB_COMPLETION_INDEX", "")
        if index.isdecimal() and int(index) > 0:
            return "JOB_COMPLETION_INDEX", int(index) + 1
    return "", 0


def on_tpu(devices: Path = Path("/dev")) -> bool:
    """Whether this machine has TPUs, and so may be one worker of a slice."""
    return any(devices.glob("accel*")) or any(devices.glob("vfio/[0-9]*"))


def set_port(environment: MutableMapping[str, str]) -> None:
    """Gives each srun of a Slurm job a port of its own. JAX derives its port from the job alone,
    so that two runs in one job would collide."""
    job, step = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_STEP_ID", "")
    if job.isdecimal() and step.isdecimal():
        port = _FIRST_PORT + (int(job) + 64 * int(step)) % _PORTS
        environment.setdefault("JAX_COORDINATOR_PORT", str(port))


def local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """The value of `jax.distributed.initialize`'s `local_device_ids` for this process.

    []: all devices that it sees. None: JAX's choice, which under Slurm and Open MPI is the one
    device with the process's number on its node. That choice is wrong where the process is
    alone on its node, or sees devices that its neighbours do not see.
    """
    tasks = _tasks_on_node(environment)
    seen = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES")
    return [] if tasks == 1 or (seen and len(seen.split(",")) < tasks) else None


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """Number of tasks of this job's step on this node, or 0 where it is unknown."""
    if local := environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", ""):
        return int(local) if local.isdecimal() else 0
    # "2(x3),1" means 2, 2, 2 and 1 tasks on the nodes in order; SLURM_NODEID is this one's place.
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        tasks, _, times = part.partition("(x")
        times = times.rstrip(")") or "1"
        if not (tasks.isdecimal() and times.isdecimal()):
            return _tasks_by_nodes(environment)
        counts += [int(tasks)] * int(times)
    node = environment.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else 0


def _tasks_by_nodes(environment: Mapping[str, str]) -> int:
    """Number of tasks on a node where all nodes have equally many, or 0 where it is unknown."""
    tasks, nodes = environment.get("SLURM_NTASKS", ""), environment.get("SLURM_STEP_NUM_NODES", "")
    if tasks == "1":
        return 1
    if not (tasks.isdecimal() and nodes.isdecimal() and int(nodes)):
        return 0
    return math.ceil(int(tasks) / int(nodes))


@contextlib.contextmanager
def without_proxies(environment: MutableMapping[str, str]) -> Iterator[list[str]]:
    """Removes the variables that name a proxy during the block; yields their names.

    jax.distributed uses gRPC, which would ask the proxy for processes of this machine or its
    cluster, and wait for minutes. The query for a TPU's metadata would do so too.
    """
    names = [name for p in _PROXIES for name in (p, p.upper()) if environment.get(name)]
    proxies = {name: environment.pop(name) for name in names}
    try:
        yield names
    finally:
        environment.update(proxies)


def is_loopback(host: str) -> bool:
    """Whether an address names this machine itself."""
    return host.strip("[]") in _LOOPBACK or host.startswith("127.")
