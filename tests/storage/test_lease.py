"""A lease on a folder of a bucket has one owner, and passes on when that one is gone."""

import dataclasses
import json
import threading
import time

import pytest

from fsdit.errors import HeldError
from fsdit.program.ownership import owned
from fsdit.storage import bucket as objects
from fsdit.storage import lease
from fsdit.storage.lease import Held, Lease, Owner

pytestmark = pytest.mark.medium

ELSEWHERE = Owner("elsewhere", 7, "boot 1 2", "2026-01-01 00:00:00 UTC", "token")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY", 0.8)
    monkeypatch.setattr(lease, "_POLL", 0.05)


def written(path, owner, generation=0):
    return objects.write(path, json.dumps(dataclasses.asdict(owner)).encode(), generation)


def taken(path, lost=lambda reason: None):
    held = Lease(path, lost)
    held.acquire(lambda owner: None)
    return held


def test_a_held_folder_names_its_owner_and_is_free_afterwards(bucket):
    named = rf"{bucket} is in use by process \d+ on .* since 2"
    with owned(bucket), pytest.raises(HeldError, match=named), owned(bucket):
        pytest.fail("owned twice")
    with owned(bucket):
        pass


def test_a_lease_without_a_heartbeat_passes_on_and_one_with_it_does_not(bucket):
    written(f"{bucket}/lock", ELSEWHERE)
    waited = []
    held = Lease(f"{bucket}/lock", lambda reason: None)
    held.acquire(waited.append)
    held.release()
    assert waited == [ELSEWHERE]

    generation = objects.read(f"{bucket}/lock")[1]
    generation = written(f"{bucket}/lock", ELSEWHERE, generation)
    beat = threading.Timer(
        0.3, lambda: written(f"{bucket}/lock", dataclasses.replace(ELSEWHERE, beat=1), generation)
    )
    beat.start()
    with pytest.raises(Held, match="process 7 on elsewhere since 2026-01-01 00:00:00 UTC"):
        taken(f"{bucket}/lock")


def test_a_process_of_this_machine_that_has_ended_is_followed_at_once(bucket, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY", 1000)
    own = taken(f"{bucket}/lock")
    gone = dataclasses.replace(own._owner, pid=2**22 + 1)
    own.release()
    written(f"{bucket}/lock", gone, objects.read(f"{bucket}/lock")[1])
    taken(f"{bucket}/lock").release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 1}', b"\xff"])
def test_a_lease_that_names_nobody_is_free(bucket, content):
    objects.write(f"{bucket}/lock", content, 0)
    taken(f"{bucket}/lock").release()


def test_of_many_that_want_a_free_lease_one_gets_it(bucket):
    got, refused = [], []

    def want():
        try:
            got.append(taken(f"{bucket}/lock"))
        except Held:
            refused.append(1)

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 7
    got[0].release()


def test_an_owner_learns_at_its_next_heartbeat_that_another_has_its_lease(bucket):
    lost = threading.Event()
    held = taken(f"{bucket}/lock", lambda reason: reason == "taken" and lost.set())
    deadline = time.monotonic() + 10
    while not written(f"{bucket}/lock", ELSEWHERE, objects.read(f"{bucket}/lock")[1]):
        assert time.monotonic() < deadline
    assert lost.wait(10)
    held.release()
    assert json.loads(objects.read(f"{bucket}/lock")[0])["host"] == "elsewhere"
