import pytest

from fsdit.parallel import clusters

STEP = {"SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "node[1-2]"}

COUNTS = {
    "nothing": ({}, 0),
    "srun": ({**STEP, "SLURM_NTASKS": "8"}, 8),
    "one task": ({**STEP, "SLURM_NTASKS": "1"}, 1),
    "a batch script": ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, 0),
    "no number": ({**STEP, "SLURM_NTASKS": "many"}, 0),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
    "mpirun of one": ({"OMPI_COMM_WORLD_SIZE": "1"}, 1),
    "Intel MPI": ({"PMI_SIZE": "3"}, 3),
    "MVAPICH": ({"MV2_COMM_WORLD_SIZE": "2"}, 2),
    "a TPU slice": ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, 4),
    "one TPU machine": ({"TPU_WORKER_HOSTNAMES": "localhost"}, 0),
    "a Kubernetes pod": ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 0),
    "a job's first pod": ({"KUBERNETES_SERVICE_HOST": "h", "JOB_COMPLETION_INDEX": "0"}, 0),
    "a job's third pod": ({"KUBERNETES_SERVICE_HOST": "h", "JOB_COMPLETION_INDEX": "2"}, 3),
}


@pytest.mark.parametrize(("environment", "count"), COUNTS.values(), ids=COUNTS.keys())
def test_processes_that_were_started_together_are_counted(environment, count):
    variable, found = clusters.count_of_processes(environment)
    assert found == count
    assert (variable in environment) == bool(count)


@pytest.mark.parametrize("jobs", [[("99", "0"), ("99", "1"), ("99", "2"), ("100", "0")]])
def test_runs_of_one_slurm_job_have_ports_of_their_own(jobs):
    ports = set()
    for job, step in jobs:
        environment = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": step}
        clusters.set_port(environment)
        ports.add(int(environment["JAX_COORDINATOR_PORT"]))
    assert len(ports) == len(jobs) and all(1024 < port < 65536 for port in ports)


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_JOB_ID": "9"}, {"SLURM_JOB_ID": "x", "SLURM_STEP_ID": "0"}]
)
def test_no_port_is_set_where_one_is_given_or_none_can_be_derived(environment):
    before = dict(environment)
    clusters.set_port(environment)
    assert environment == before
    named = {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "1", "JAX_COORDINATOR_PORT": "1"}
    clusters.set_port(named)
    assert named["JAX_COORDINATOR_PORT"] == "1"


ALL, JAX_CHOOSES = [], None
DEVICES = {
    "nothing": ({}, JAX_CHOOSES),
    "a task a node": ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_NODEID": "3"}, ALL),
    "eight a node": ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_NODEID": "1"}, JAX_CHOOSES),
    "uneven, here two": ({"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_NODEID": "0"}, JAX_CHOOSES),
    "uneven, here one": ({"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_NODEID": "1"}, ALL),
    "older Slurm": ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, ALL),
    "one task in all": ({"SLURM_NTASKS": "1"}, ALL),
    "unreadable": ({"SLURM_STEP_TASKS_PER_NODE": "two"}, JAX_CHOOSES),
    "a device for each task": (
        {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "0", "CUDA_VISIBLE_DEVICES": "2"},
        ALL,
    ),
    "all devices for each task": (
        {"SLURM_STEP_TASKS_PER_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"},
        JAX_CHOOSES,
    ),
    "mpirun, one here": ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ALL),
    "mpirun, two here": ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, JAX_CHOOSES),
}


@pytest.mark.parametrize(("environment", "devices"), DEVICES.values(), ids=DEVICES.keys())
def test_a_task_that_has_its_devices_for_itself_sees_them_all(environment, devices):
    assert clusters.local_devices(environment) == devices


NAMES = ["grpc_proxy", "https_proxy", "http_proxy", "all_proxy"]


@pytest.mark.parametrize("name", [*NAMES, *(name.upper() for name in NAMES)])
def test_proxies_are_removed_within_the_context_only(name):
    environment = {name: "http://proxy:3128", "no_proxy": "a.b", "HOME": "/"}
    before = dict(environment)
    with pytest.raises(KeyError), clusters.without_proxies(environment) as names:
        assert names == [name] and environment == {"no_proxy": "a.b", "HOME": "/"}
        raise KeyError("of a cluster's variable")
    assert environment == before


def test_an_empty_proxy_does_not_count():
    with clusters.without_proxies({"https_proxy": ""}) as names:
        assert names == []


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.1.2.3", "localhost", "[::1]")),
        *((host, False) for host in ("node1", "10.0.0.1", "")),
    ],
)
def test_loopback_addresses_are_recognised(host, loopback):
    assert clusters.is_loopback(host) == loopback


@pytest.mark.parametrize(
    ("files", "found"),
    [([], False), (["vfio/vfio"], False), (["accel0"], True), (["vfio/3"], True)],
)
def test_a_tpu_machine_is_recognised_by_its_devices(tmp_path, files, found):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert clusters.on_tpu(tmp_path) == found
