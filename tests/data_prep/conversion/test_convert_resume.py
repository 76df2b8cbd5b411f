"""The output is the same, byte for byte, after kills, with any number of workers, and on Beam."""

import json
import os
import shutil
import signal
import tarfile
import time

import psutil
import pytest

from tests.data_prep.conversion.conversions import convert, fail, succeed
from tests.data_prep.conversion.photos import class_folders, encoded, files, keys_by_class, photo
from tests.programs import start_program

pytestmark = pytest.mark.medium

# Shards of few images, room for bad files and duplicates, and a class that is dropped.
FLAGS = (
    "--num_classes=3,1,2",
    "--image_size=32",
    "--shard_mb=0.004",
    "--max_bad_fraction=0.2",
    "--drop_small_classes",
    "--shots=4",
    "--sets_per_class=2000",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos large enough that a conversion takes seconds."""
    source = class_folders(tmp_path_factory.mktemp("photos") / "in", images=10, size=(900, 700))
    for c in range(6):
        shutil.copy(source / f"class{c:02d}" / "000.jpg", source / f"class{c:02d}" / "zz.jpg")
    for i in range(2, 10):
        (source / "class03" / f"{i:03d}.jpg").write_bytes(b"no image")
    return source


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "d"
    succeed(folder, output, *FLAGS, "--workers=1")
    for split in ("train", "test"):
        assert len(list(output.glob(f"{split}/images-*"))) > 4
        keys_by_class(output, split)
    assert "class03" in (output / "skipped.csv").read_text()
    assert "same pixels" in (output / "skipped.csv").read_text()
    return output


def start(folder, output, *flags):
    paths = (f"--input={folder}", f"--output_dir={output}")
    return start_program("data_prep.convert", *paths, *FLAGS, *flags)


def kill_when(process, reached, timeout=300):
    """Sends SIGKILL to the program, but not to its workers, as soon as `reached()` is true."""
    deadline = time.monotonic() + timeout
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout) == -signal.SIGKILL


def group_is_gone(group, timeout=300):
    """Whether the workers that a killed program left behind end on their own."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_conversion_killed_several_times_ends_as_if_never_stopped(folder, undisturbed, tmp_path):
    output = tmp_path / "d"
    partial = tmp_path / "d.partial"

    def results():
        return len(list(partial.glob("work/*.result.json")))

    moments = [
        lambda: (partial / "work").is_dir(),
        lambda: results() >= 8,
        lambda: list(partial.glob("train/episodes-*.partial")),  # by then all shards are final
        lambda: (partial / "train" / "manifest.json").exists(),
    ]
    kept = {}
    for reached in moments:
        process = start(folder, output, "--workers=2")
        kill_when(process, reached)
        assert group_is_gone(process.pid)
        assert not output.exists()
        for path, content in kept.items():
            assert path.read_bytes() == content, f"{path} was made again"
        kept = {path: path.read_bytes() for path in partial.glob("work/*.result.json")}
    assert len(kept) > 8
    assert "going on with" in succeed(folder, output, *FLAGS, "--workers=2")
    assert files(output) == files(undisturbed)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_nothing(folder, undisturbed, tmp_path, workers):
    succeed(folder, tmp_path / "d", *FLAGS, f"--workers={workers}")
    assert files(tmp_path / "d") == files(undisturbed)


@pytest.mark.large
@pytest.mark.parametrize("arguments", ["", "--direct_running_mode=multi_processing"])
def test_the_beam_runner_changes_nothing(folder, undisturbed, tmp_path, arguments):
    pytest.importorskip("apache_beam", reason="needs the extra [beam]")
    flags = ("--runner=beam", f"--beam_args={arguments} --direct_num_workers=2")
    done = convert(folder, tmp_path / "d", *FLAGS, *flags)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "d") == files(undisturbed)


def test_an_error_on_beam_is_reported_in_one_line(folder, tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra [beam]")
    flags = [flag for flag in FLAGS if "image_size" not in flag]
    done = convert(folder, tmp_path / "d", *flags, "--runner=beam")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: --runner=beam: ") and "give --image_size" in last
    assert not (tmp_path / "d").exists()


def test_a_killed_worker_changes_nothing(folder, undisturbed, tmp_path):
    process = start(folder, tmp_path / "d", "--workers=2")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("d.partial/work/*.result.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    workers = [
        child
        for child in psutil.Process(process.pid).children()
        if "spawn_main" in " ".join(child.cmdline())
    ]
    workers[0].kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert files(tmp_path / "d") == files(undisturbed)


@pytest.mark.large
def test_a_killed_conversion_of_a_compressed_tar_is_continued(folder, tmp_path):
    with tarfile.open(tmp_path / "in.tgz", "w:gz") as archive:
        archive.add(folder, "photos")
    succeed(tmp_path / "in.tgz", tmp_path / "whole", *FLAGS)
    process = start(tmp_path / "in.tgz", tmp_path / "d")
    kill_when(process, lambda: list(tmp_path.glob("d.partial/work/*.result.json")))
    assert group_is_gone(process.pid)
    succeed(tmp_path / "in.tgz", tmp_path / "d", *FLAGS)
    assert files(tmp_path / "d") == files(tmp_path / "whole")


@pytest.fixture
def begun(tmp_path):
    """A conversion that stopped in the middle: a folder with one bad file too many."""
    folder = class_folders(tmp_path / "in")
    (folder / "class05" / "zz.jpg").write_bytes(b"no image")
    fail(folder, tmp_path / "d", "--num_classes=3,1,2", "--sets_per_class=2", "--shard_mb=0.01")
    assert (tmp_path / "d.partial").is_dir()
    return folder


@pytest.mark.parametrize("flag", ["--seed=1", "--shots=4", "--quality=90", "--shard_mb=0.02"])
def test_other_flags_do_not_continue_a_begun_conversion(begun, tmp_path, flag):
    before = files(tmp_path / "d.partial")
    flags = ["--num_classes=3,1,2", "--sets_per_class=2", "--shard_mb=0.01", flag]
    line = fail(begun, tmp_path / "d", *flags)
    assert flag in line and str(tmp_path / "d.partial") in line and "delete it" in line
    assert files(tmp_path / "d.partial") == before


def test_another_input_does_not_continue_a_begun_conversion(begun, tmp_path):
    (begun / "class00" / "new.jpg").write_bytes(encoded(photo(99)))
    line = fail(
        begun, tmp_path / "d", "--num_classes=3,1,2", "--sets_per_class=2", "--shard_mb=0.01"
    )
    assert "other files" in line and "d.partial" in line


def test_another_max_bad_fraction_continues_a_begun_conversion(begun, tmp_path):
    flags = ("--num_classes=3,1,2", "--sets_per_class=2", "--shard_mb=0.01")
    succeed(begun, tmp_path / "d", *flags, "--max_bad_fraction=0.1")
    succeed(begun, tmp_path / "e", *flags, "--max_bad_fraction=0.1")
    assert files(tmp_path / "d") == files(tmp_path / "e")


def test_a_complete_dataset_that_was_not_yet_renamed_is_put_in_place(folder, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "d.partial")
    succeed(folder, tmp_path / "d", *FLAGS)
    assert files(tmp_path / "d") == files(undisturbed)

    shutil.copytree(undisturbed, tmp_path / "e.partial")
    line = fail(folder, tmp_path / "e", *FLAGS, "--seed=1")
    assert "e.partial" in line
    assert files(tmp_path / "e.partial") == files(undisturbed)
    assert json.loads((tmp_path / "e.partial" / "dataset.json").read_text())["seed"] == 0


def test_a_working_folder_with_foreign_files_is_left_alone(folder, tmp_path):
    (tmp_path / "d.partial").mkdir()
    (tmp_path / "d.partial" / "mine.txt").write_text("precious")
    assert "d.partial" in fail(folder, tmp_path / "d", *FLAGS)
    assert files(tmp_path / "d.partial") == {"mine.txt": b"precious"}
