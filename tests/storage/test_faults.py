"""A store that fails for a while is waited for; one that fails for good ends in one line."""

import random

import pytest

from fsdit import storage
from fsdit.errors import FsditError, OutputError, UnavailableError
from fsdit.storage import bucket as objects
from tests.conftest import experiment_file
from tests.processes import finish, losses, start, wait_for_step
from tests.storage.faults import proxied
from tests.storage.server import client_environment

pytestmark = pytest.mark.medium

FILES = {f"{i}/file": bytes([i]) * 1000 for i in range(3)}


@pytest.fixture
def proxy(bucket, _store, monkeypatch):
    with proxied(_store["STORAGE_EMULATOR_HOST"]) as proxy:
        for name, value in client_environment(proxy.address).items():
            monkeypatch.setenv(name, value)
        objects._client.cache_clear()
        monkeypatch.setattr(objects, "_FIRST_PAUSE", 0.05)
        yield proxy
    objects._client.cache_clear()


def sometimes(*faults):
    """Faults for every other request or so, in an order that is the same each time."""
    chance = random.Random(0)
    return lambda number, path: chance.choice([None, *faults])


FAULTS = {"too many requests": 429, "unavailable": 503, "cut": "cut", "slow": 0.05}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_arrive_whole_through_a_store_that_fails_now_and_then(proxy, bucket, fault, tmp_path):
    proxy.fail = sometimes(FAULTS[fault])
    for name, content in FILES.items():
        (tmp_path / "file").write_bytes(content)
        objects.upload(tmp_path / "file", f"{bucket}/{name}")
    copy = storage.local_copy(bucket)
    assert {name: (copy / name).read_bytes() for name in FILES} == FILES
    assert objects.write(f"{bucket}/lock", b"1", 0)
    assert len(proxy.log) > len(FILES) * 2 + 2  # some requests were repeated, or all were slow


@pytest.mark.parametrize("fault", [503, "cut"])
def test_a_store_that_fails_for_good_is_one_line(proxy, bucket, fault, monkeypatch, tmp_path):
    monkeypatch.setattr(objects, "RETRY_SECONDS", 1.5)
    proxy.fail = lambda number, path: fault
    for action in (
        lambda: storage.local_copy(bucket),
        lambda: objects.write(f"{bucket}/lock", b"1", 0),
    ):
        with pytest.raises(UnavailableError, match=r"gs://bucket/.*: the store does not") as caught:
            action()
        assert "\n" not in str(caught.value) and "start the same command again" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "words"), [(403, "this account may not"), (401, "no credentials")]
)
def test_a_store_that_forbids_is_not_asked_again(proxy, bucket, status, words):
    proxy.fail = lambda number, path: status
    with pytest.raises(OutputError, match=words):
        objects.write(f"{bucket}/lock", b"1", 0)
    assert len([path for _, path in proxy.log if "upload" in path]) == 1


def test_missing_credentials_are_one_line(bucket, monkeypatch, tmp_path):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    objects._client.cache_clear()
    for action in (
        lambda: storage.local_copy(bucket),
        lambda: storage.is_there(f"{bucket}/x"),
        lambda: objects.write(f"{bucket}/lock", b"1", 0),
    ):
        with pytest.raises(FsditError, match=r"no credentials: run `gcloud auth") as caught:
            action()
        assert "\n" not in str(caught.value)
    objects._client.cache_clear()


@pytest.mark.large
def test_a_run_whose_store_is_gone_ends_in_one_line_and_is_to_be_started_again(
    proxy, bucket, tmp_path, small_config, undisturbed
):
    experiment = experiment_file(tmp_path / "experiment.py", small_config)
    workdir = f"{bucket}/run"
    process = start(experiment, workdir)
    wait_for_step(process, workdir, 6)
    proxy.fail = lambda number, path: 503 if "checkpoints" in path else None
    status, output = finish(process)
    assert status == 75, output
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "the store does not answer" in error and "start the same command again" in error
    assert "Traceback" not in output, output
    status, output = finish(start(experiment, workdir))
    assert status == 75 and "damaged" not in output, output  # it is not known to be
    proxy.fail = lambda number, path: None
    status, output = finish(start(experiment, workdir))
    assert status == 0, output
    assert losses(workdir) == losses(undisturbed(experiment))


@pytest.mark.large
def test_a_run_waits_for_its_store_and_goes_on(proxy, bucket, tmp_path, small_config, undisturbed):
    experiment = experiment_file(tmp_path / "experiment.py", small_config)
    workdir = f"{bucket}/run"
    process = start(experiment, workdir)
    wait_for_step(process, workdir, 3)
    began = len(proxy.log)
    proxy.fail = lambda number, path: 503 if number - began < 30 and number % 3 == 0 else None
    status, output = finish(process)
    assert status == 0, output
    assert len(proxy.log) - began > 30  # the store was in use while it failed
    assert losses(workdir) == losses(undisturbed(experiment))
    content, _ = objects.read(f"{workdir}/metrics.jsonl")
    assert len(content.splitlines()) == small_config.train.num_steps
