import hashlib
import shutil
from pathlib import Path

import pytest

from data_prep.verify import verify
from fsdit.data import layout, records
from fsdit.data.readers import EpisodeReader
from fsdit.data.shards import shard_name, write_shard
from fsdit.errors import DataError
from tests.data_prep import datasets
from tests.programs import run_module

pytestmark = pytest.mark.medium

FLAGS = ("--shots=1", "--sets_per_class=2", "--seed=5")


@pytest.fixture
def dataset(tmp_path) -> Path:
    return datasets.write(tmp_path / "d")


def rebuild(dataset, *flags):
    return run_module("data_prep.episodes", f"--dataset_dir={dataset}", *flags)


def files(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(("shots", "sets", "episodes"), [(1, 3, 6), (0, 3, 3), (2, 1, 3)])
def test_the_episodes_are_new_and_the_images_are_not_touched(dataset, shots, sets, episodes):
    before = files(dataset)
    done = rebuild(dataset, f"--shots={shots}", f"--sets_per_class={sets}")
    assert done.returncode == 0, done.stderr
    after = files(dataset)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert not any("images" in name for name in changed)
    assert verify(dataset, fast=False, workers=0).damages == []
    for name, split in layout.read_dataset_info(dataset).splits.items():
        assert split.shots == shots
        assert split.episodes == episodes * len(split.classes)
        reader = EpisodeReader(dataset / name, split, shots)
        assert len(reader) == split.episodes
        stored = [reader[i] for i in range(len(reader))]
        assert {e.class_id for e in stored[: len(split.classes)]} == set(range(len(split.classes)))
        if shots == 0:
            assert all(e.supports == (e.target,) for e in stored)


def test_the_same_flags_give_the_same_bytes_whatever_episodes_were_there(dataset, tmp_path):
    other = shutil.copytree(dataset, tmp_path / "other")
    rebuild(other, "--shots=2", "--sets_per_class=1").check_returncode()
    for directory in (dataset, other):
        rebuild(directory, *FLAGS).check_returncode()
    assert files(dataset) == files(other)
    rebuild(other, *FLAGS[:2], "--seed=6").check_returncode()
    name = "train/episodes-00000-of-00001.array_record"
    assert files(dataset)[name] != files(other)[name]


def test_several_files_of_episodes_become_one(dataset):
    folder = dataset / "train"
    manifest = layout.read_manifest(folder)
    payload = records.encode_episode(records.Episode(0, 0, (1, 2)))
    del manifest["episodes-00000-of-00001.array_record"]
    (folder / "episodes-00000-of-00001.array_record").unlink()
    for i in range(2):
        file = shard_name("episodes", i, 2)
        manifest[file] = write_shard(folder / file, [payload])
    layout.write_json(folder / "manifest.json", manifest)
    layout.write_dataset_json(dataset, layout.read_dataset_json(dataset))
    rebuild(dataset, *FLAGS).check_returncode()
    assert [p.name for p in folder.glob("episodes*")] == ["episodes-00000-of-00001.array_record"]
    assert verify(dataset, fast=False, workers=0).damages == []


def test_leftovers_of_a_killed_start_are_removed(dataset):
    names = files(dataset).keys()
    for leftover in (
        "dataset.json.partial",
        "val/manifest.json.partial",
        "val/episodes-00000-of-00001.array_record.next",
        "val/episodes-00000-of-00001.array_record.next.partial",
    ):
        (dataset / leftover).write_text("x")
    rebuild(dataset, *FLAGS).check_returncode()
    assert files(dataset).keys() == names


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--shots=3", "--sets_per_class=1"], "class 'bee' has 3 images, shots=3 needs 4"),
        (["--shots=-1", "--sets_per_class=1"], "--shots"),
        (["--shots=1"], "--sets_per_class"),
    ],
)
def test_wrong_flags_change_nothing(dataset, flags, named):
    before = files(dataset)
    done = rebuild(dataset, *flags)
    assert done.returncode == 1
    assert named in done.stderr and "Traceback" not in done.stderr
    assert files(dataset) == before


def test_a_folder_without_a_dataset_is_reported_in_one_line(tmp_path):
    done = rebuild(tmp_path, *FLAGS)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/dataset.json: no such file")


def test_a_kill_leaves_the_old_or_new_episodes_or_an_error_with_the_remedy(dataset, tmp_path):
    (tmp_path / "killed").mkdir()
    module = "tests.data_prep.conversion.kill_at_each_write"
    run_module(module, dataset, tmp_path / "killed", *FLAGS, timeout=120).check_returncode()
    *killed, undisturbed = sorted((tmp_path / "killed").iterdir(), key=lambda p: int(p.name))
    old, new = files(dataset), files(undisturbed)
    states = [_state(directory, old, new) for directory in killed]
    assert set(states) == {"old", "named", "new"}
    assert states == sorted(states, key=["old", "named", "new"].index)
    for place in (states.index("named") - 1, states.index("new") - 1):
        rebuild(killed[place], *FLAGS).check_returncode()
        assert files(killed[place]) == new


def _state(directory: Path, old: dict[str, str], new: dict[str, str]) -> str:
    """Whether a program finds the old dataset, the new one, or an error that names the remedy."""
    try:
        damages = verify(directory, fast=False, workers=0).damages
    except DataError as error:
        assert f"python -m data_prep.episodes --dataset_dir={directory}" in str(error)
        return "named"
    found = {n: digest for n, digest in files(directory).items() if n not in ("lock", "lock.since")}
    extra = found.keys() - old.keys()
    assert len(damages) == len(extra)
    for damage in damages:
        assert "delete it" in damage.text and str(damage.path.relative_to(directory)) in extra
    kept = {name: digest for name, digest in found.items() if name not in extra}
    assert kept in (old, new)
    return "old" if kept == old else "new"
