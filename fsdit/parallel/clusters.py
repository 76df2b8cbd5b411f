"""What the environment says of the processes of this job, and how JAX is to join them.

JAX finds Slurm, Open MPI, TPU and Kubernetes jobs by itself (jax/_src/clusters). Here is
what it leaves open: whether there is any other process, whether one that it does not know
started several, which port two runs of one Slurm job take, which devices a task has, and
what must not go through a proxy.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

# How many processes were started together, by who started them. Slurm's number of tasks
# counts inside srun only: a batch script sees it too.
_COUNTS = {
    "SLURM_NTASKS": "SLURM_STEP_NODELIST",
    "OMPI_COMM_WORLD_SIZE": None,
    "PMI_SIZE": None,  # MPICH, Intel MPI
    "MV2_COMM_WORLD_SIZE": None,
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
_FIRST_PORT, _PORTS = 61440, 4096  # those that JAX takes under Slurm


def count_of_processes(environment: Mapping[str, str]) -> tuple[str, int]:
    """(variable, processes of this job) as the environment has it; ("", 0) where it says nothing.

    For Kubernetes and TPUs it is what can be told without asking a server.
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
    """Whether this machine has TPUs, and so may be a worker of a slice that a server names."""
    return any(True for name in ("accel*", "vfio/[0-9]*") for _ in devices.glob(name))


def set_port(environment: MutableMapping[str, str]) -> None:
    """Gives each srun of a Slurm job a port of its own: JAX's comes from the job alone."""
    job, step = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_STEP_ID", "")
    if job.isdecimal() and step.isdecimal():
        port = _FIRST_PORT + (int(job) + 64 * int(step)) % _PORTS
        environment.setdefault("JAX_COORDINATOR_PORT", str(port))


def local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """[]: all that this process sees; None: JAX's choice, the one with its number on the node.

    JAX would give it one under Slurm and Open MPI, also where it is alone on its node, or
    was given devices that its neighbours do not see.
    """
    tasks = _tasks_on_node(environment)
    seen = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES")
    return [] if tasks == 1 or (seen and len(seen.split(",")) < tasks) else None


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """Tasks of this job's step on this node, or 0 where nothing is known of them."""
    if local := environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", ""):
        return int(local) if local.isdecimal() else 0
    # "2(x3),1": of each node in its turn. SLURM_NODEID is the turn of this one.
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
    tasks, nodes = environment.get("SLURM_NTASKS", ""), environment.get("SLURM_STEP_NUM_NODES", "")
    if tasks == "1":
        return 1
    if not (tasks.isdecimal() and nodes.isdecimal() and int(nodes)):
        return 0
    return math.ceil(int(tasks) / int(nodes))


@contextlib.contextmanager
def without_proxies(environment: MutableMapping[str, str]) -> Iterator[list[str]]:
    """Takes the variables that name a proxy out of the environment; yields their names.

    gRPC, under jax.distributed, would ask the proxy for a process of this machine or of its
    cluster, and wait for minutes; so would the look at a TPU's metadata.
    """
    names = [name for p in _PROXIES for name in (p, p.upper()) if environment.get(name)]
    proxies = {name: environment.pop(name) for name in names}
    try:
        yield names
    finally:
        environment.update(proxies)


def is_loopback(host: str) -> bool:
    return host.strip("[]") in _LOOPBACK or host.startswith("127.")
