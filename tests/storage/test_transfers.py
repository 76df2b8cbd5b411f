"""Files that go into a bucket and come back, through kills and changes."""

import os
import shutil
import time
from collections import namedtuple

import pytest

from fsdit import storage
from fsdit.errors import ConfigError, DataError, OutputError
from fsdit.storage import bucket as objects
from fsdit.storage import copies

pytestmark = pytest.mark.medium


def put(folder, files):
    for name, content in files.items():
        assert objects.write(f"{folder}/{name}", content, 0), name


def content(folder):
    """name -> bytes, of a folder on a disk or in a bucket."""
    if storage.is_remote(folder):
        return {name: objects.read(f"{folder}/{name}")[0] for name in objects.objects(folder)}
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


FILES = {"a.txt": b"a", "b/c.bin": bytes(range(256)), "b/d/empty": b""}


def test_a_folder_and_a_file_are_copied_and_kept(bucket, monkeypatch):
    put(bucket, FILES)
    copy = storage.local_copy(f"{bucket}/")
    assert content(copy) == FILES and copy.name == bucket.rpartition("/")[2]
    assert storage.local_copy(f"{bucket}/a.txt").read_bytes() == b"a"
    monkeypatch.setattr(objects, "download", lambda *_: pytest.fail("downloaded again"))
    assert content(storage.local_copy(bucket)) == FILES


def test_what_has_changed_in_the_bucket_or_on_the_disk_is_copied_again(bucket):
    put(bucket, FILES)
    copy = storage.local_copy(bucket)
    _, generation = objects.read(f"{bucket}/a.txt")
    assert objects.write(f"{bucket}/a.txt", b"b", generation)
    (copy / "b" / "c.bin").write_bytes(b"cut off")
    assert content(storage.local_copy(bucket)) == {**FILES, "a.txt": b"b"}


def test_what_the_bucket_no_longer_has_leaves_the_copy(bucket):
    put(bucket, FILES)
    storage.local_copy(bucket)
    objects.delete(f"{bucket}/a.txt")
    left = {name: data for name, data in FILES.items() if name != "a.txt"}
    assert content(storage.local_copy(bucket)) == left
    put(bucket, {"a.txt": b"back"})
    assert content(storage.local_copy(bucket)) == {**left, "a.txt": b"back"}


def test_notes_of_copies_that_a_kill_cut_off_are_copied_again(bucket, monkeypatch):
    put(bucket, FILES)
    copy = storage.local_copy(bucket)
    notes = copy.with_name(f"{copy.name}.copied.jsonl")
    notes.write_bytes(notes.read_bytes()[:-4])
    fetched, download = [], objects.download
    monkeypatch.setattr(objects, "download", lambda *a: fetched.append(a[0]) or download(*a))
    assert content(storage.local_copy(bucket)) == FILES and len(fetched) == 1


def test_an_interrupted_publication_with_a_deletion_goes_on(bucket, monkeypatch):
    put(bucket, FILES)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(storage.Mirror, "discard", lambda mirror: 1 / 0)
        with storage.changed_folder(bucket) as folder:
            (folder / "a.txt").unlink()
    with storage.changed_folder(bucket) as folder:
        assert not (folder / "a.txt").exists()
    assert content(bucket).keys() == FILES.keys() - {"a.txt"}


def test_what_is_not_there_is_named(bucket):
    with pytest.raises(DataError, match=f"{bucket}/none: no such object"):
        storage.local_copy(f"{bucket}/none")
    with pytest.raises(DataError, match="gs://no-such-bucket/x: no such bucket or object"):
        storage.local_copy("gs://no-such-bucket/x")
    with pytest.raises(OutputError, match="gs://no-such-bucket/x: no such bucket or object"):
        objects.write("gs://no-such-bucket/x", b"", 0)


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", "a//b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(bucket, name):
    put(bucket, {name: b"x"})
    with pytest.raises(DataError, match="no name of a file"):
        storage.local_copy(bucket)


def test_a_disk_that_is_too_small_is_named_before_anything_is_copied(bucket, monkeypatch):
    put(bucket, FILES)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: usage(2**28))
    with pytest.raises(OutputError, match=r"268 MB are free, the copy of .* needs 268: make room"):
        storage.local_copy(bucket)
    assert not any(content(copies.cache_folder()).values())


def test_a_new_folder_is_published_with_its_seal_last(bucket, monkeypatch):
    sent = []
    upload = objects.upload
    monkeypatch.setattr(
        objects, "upload", lambda source, path: sent.append(path) or upload(source, path)
    )
    files = {"dataset.json": b"{}", "train/manifest.json": b"{}", "train/z": b"1", "a": b"2"}
    with storage.new_folder(bucket, seal="dataset.json") as folder:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        (folder / "x.partial").write_bytes(b"of no use elsewhere")
    assert content(bucket) == files
    assert [path.removeprefix(f"{bucket}/") for path in sent] == [
        "a", "train/z", "train/manifest.json", "dataset.json",
    ]  # fmt: skip
    assert not folder.exists()
    with (
        pytest.raises(ConfigError, match="exists and is not empty"),
        storage.new_folder(bucket, seal="dataset.json"),
    ):
        pass


def test_a_start_after_a_kill_finds_the_new_folder_under_its_partial_name(bucket):
    class Killed(BaseException):
        pass

    with pytest.raises(Killed), storage.new_folder(bucket, seal="dataset.json") as folder:
        folder.mkdir()
        (folder / "made").write_bytes(b"1")
        raise Killed
    with storage.new_folder(bucket, seal="dataset.json") as folder:
        partial = folder.with_name(f"{folder.name}.partial")
        assert content(partial) == {"made": b"1"} and not folder.exists()
        partial.rename(folder)
    assert content(bucket) == {"made": b"1"}


def test_changes_to_a_folder_are_published_and_nothing_else(bucket, monkeypatch):
    put(bucket, FILES)
    with storage.changed_folder(bucket) as folder:
        assert content(folder) == FILES
        (folder / "new").write_bytes(b"n")
        (folder / "a.txt").unlink()
        sent = []
        upload = objects.upload
        monkeypatch.setattr(
            objects, "upload", lambda source, path: sent.append(path) or upload(source, path)
        )
    assert content(bucket) == {**{k: v for k, v in FILES.items() if k != "a.txt"}, "new": b"n"}
    assert sent == [f"{bucket}/new"]


def test_an_interrupted_change_goes_on_unless_the_bucket_has_changed(bucket):
    put(bucket, FILES)
    for attempt in range(2):
        with pytest.raises(ZeroDivisionError), storage.changed_folder(bucket) as folder:
            assert (folder / "work").exists() == bool(attempt)
            (folder / "work").write_bytes(b"half")
            raise ZeroDivisionError
    _, generation = objects.read(f"{bucket}/a.txt")
    assert objects.write(f"{bucket}/a.txt", b"b", generation)
    with (
        pytest.raises(DataError, match=r"a\.txt has changed since .* delete .* to begin again"),
        storage.changed_folder(bucket),
    ):
        pass
    shutil.rmtree(folder.parent)
    with storage.changed_folder(bucket) as folder:
        assert (folder / "a.txt").read_bytes() == b"b" and not (folder / "work").exists()


def test_an_output_file_is_published_with_what_lies_beside_it(bucket, tmp_path):
    with storage.output_file(f"{bucket}/out/grid.png") as path:
        path.write_bytes(b"png")
        path.with_suffix(".json").write_bytes(b"{}")
    assert content(bucket) == {"out/grid.png": b"png", "out/grid.json": b"{}"}
    with storage.output_file(tmp_path / "grid.png") as path:
        assert path == tmp_path / "grid.png"


def test_a_mirror_publishes_what_has_changed_and_its_end_also_after_an_error(bucket):
    put(bucket, {"log": b"1\n", "checkpoints/5/state": b"large"})
    with (
        pytest.raises(ZeroDivisionError),
        storage.mirrored(bucket, 0, lambda name: name == "log") as mirror,
    ):
        assert content(mirror.folder) == {"log": b"1\n"}
        with (mirror.folder / "log").open("ab") as log:
            log.write(b"2\n")
        mirror.publish()
        assert objects.read(f"{bucket}/log")[0] == b"1\n2\n"
        (mirror.folder / "log").write_bytes(b"3\n")
        os.utime(mirror.folder / "log", (time.time() + 5,) * 2)
        raise ZeroDivisionError
    assert content(bucket) == {"log": b"3\n", "checkpoints/5/state": b"large"}
