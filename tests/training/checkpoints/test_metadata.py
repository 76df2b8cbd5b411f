"""The small files of a checkpoint: which are valid, damaged or unreadable."""

import copy
import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest

from fsdit.config import Config, to_dict
from fsdit.data.images.photos import Preparation
from fsdit.data.run_dataset import DatasetFacts
from fsdit.errors import CheckpointError
from fsdit.training.checkpoints import listing, metadata
from fsdit.training.checkpoints.metadata import DamagedCheckpointError, UnreadableCheckpointError
from fsdit.training.checkpoints.selection import score, to_meta
from fsdit.training.telemetry.running import TIME_BINS, Running

STEP, BATCH = 600, 128
DELETED = object()


FACTS = DatasetFacts(
    image_size=24,
    channels=1,
    preparation=Preparation("black", "squash"),
    classes={"train": 3, "test": 2},
    images={"train": 30, "test": 20},
    sources={"icons": {"license": "MIT"}},
)


def saved():
    """(meta, data) as a run hands them over."""
    config = Config()
    found = to_meta(score(config, STEP, 0.5), score(config, 595, 0.25))
    running = dataclasses.replace(Running.fresh(), loss_average=0.5, average_weight=0.25)
    meta = {
        "config": to_dict(config),
        "identity": {"dataset": "a", "encoder": "b"},
        "versions": {"jax": "0.10.2"},
        "mesh": {"data": 8, "fsdp": 1, "processes": 2},
        "dataset": dataclasses.asdict(FACTS),
        **found,
        "running": dataclasses.asdict(running),
        "fingerprint": {"step": STEP, "params/embed/kernel": 2**32 - 1},
    }
    return meta, {"next_index": STEP * BATCH}


def write(folder: Path, meta, data) -> Path:
    for name, values in (("meta", meta), ("data", data)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        text = values if isinstance(values, str | bytes) else json.dumps(values)
        file = folder / name / "metadata"
        file.write_bytes(text) if isinstance(text, bytes) else file.write_text(text)
    return folder


def changed(values, path, value):
    """Copy the values with another one at a path of keys; DELETED removes that one."""
    values = copy.deepcopy(values)
    holder = values
    for key in path[:-1]:
        holder = holder[key]
    if value is DELETED:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return values


@pytest.mark.parametrize("sealed", [True, False], ids=["digest", "of an earlier commit"])
def test_saved_metadata_is_read_back(tmp_path, sealed):
    meta, data = saved()
    expected = json.loads(json.dumps(meta))
    files = metadata.seal(STEP, meta, data) if sealed else (meta, data)
    meta["running"]["loss_average"] = 9.0 if sealed else 0.5  # a change after seal() is not saved
    assert metadata.read(write(tmp_path / str(STEP), *files)) == (expected, STEP * BATCH)


IN_DATA = [0, -8, 1.5, 10**30, (STEP - 5) * BATCH, STEP * BATCH + 1, None, "7", True, [], DELETED]
IN_META = [
    *((("config",), v) for v in (DELETED, None, 7, "x", [], {})),
    *((("config", "data"), v) for v in (DELETED, None, 7, {})),
    *((("config", "data", "batch_size"), v) for v in (0, -1, 1.5, "128", True, 64, DELETED)),
    *((("identity",), v) for v in (DELETED, None, [], "x", {"dataset": 7})),
    *((("running",), v) for v in (DELETED, None, [], 7, "x", {"loss_average": 1.0, "x": {}})),
    *((("running", "loss_average"), v) for v in ("x", None, [], float("nan"), float("inf"), -1)),
    *((("running", "average_weight"), v) for v in ("x", 1.5, -0.5, True, {})),
    *((("running", "bin_losses"), v) for v in (0.0, [], [0.0] * (TIME_BINS + 1), ["x"] * 10)),
    *((("running", "bin_counts"), v) for v in (None, {}, [None] * TIME_BINS, [-1.0] * TIME_BINS)),
    *((("fingerprint",), v) for v in (DELETED, None, {}, [], {"step": str(STEP)})),
    *((("fingerprint", "step"), v) for v in (DELETED, 595, float(STEP), -STEP, None)),
    *((("fingerprint", "params/embed/kernel"), v) for v in (-1, 2**32, 1.5, "x", None, True)),
    *((("judged",), v) for v in (7, [], "x", {}, {"step": STEP})),
    *((("judged", "step"), v) for v in (595, 0, -1, "600", 1.5, True, DELETED)),
    *((("judged", "value"), v) for v in (None, "x", float("nan"), float("-inf"), DELETED)),
    *((("best", "step"), v) for v in ("../..", 0, -5, STEP + 1, 10**30, 1.5, None, True, [595])),
    *((("best", "settings"), v) for v in (None, 7, [], "x", DELETED)),
    *((("mesh",), v) for v in (DELETED, [], {"data": "8"}, {"data": 0})),
    *((("versions",), v) for v in (DELETED, 7, {"jax": None})),
]  # fmt: skip
TEXTS = [b"", b"{", b"null", b"7", b"[]", b"\xff\xfe", b"\0" * 99, b"[" * 10**5, b'{"a": NaN}']


def cases():
    meta, data = saved()
    yield from ((meta, changed(data, ("next_index",), value)) for value in IN_DATA)
    yield from ((changed(meta, path, value), data) for path, value in IN_META)
    yield from ((text, data) for text in TEXTS)
    yield from ((meta, text) for text in TEXTS)


def test_values_that_no_run_saves_are_damage_in_checkpoints_of_any_age(tmp_path):
    for number, (meta, data) in enumerate(cases()):
        folder = write(tmp_path / str(number) / str(STEP), meta, data)
        with pytest.raises(DamagedCheckpointError) as found:
            metadata.read(folder)
            pytest.fail(f"accepted: {json.dumps(meta)[:9999]} {data}")
        assert "\n" not in str(found.value) and str(folder) in str(found.value)


def leaves(values, path=()):
    """Yield the path of keys of each value in nested dictionaries and lists."""
    pairs = (
        values.items()
        if isinstance(values, dict)
        else enumerate(values if isinstance(values, list) else ())
    )
    for key, value in pairs:
        yield (*path, key)
        yield from leaves(value, (*path, key))


OTHERS = [None, -8, "../..", DELETED]


@pytest.mark.medium
def test_a_digest_finds_each_change_of_each_value(tmp_path):
    files = json.loads(json.dumps(metadata.seal(STEP, *saved())))
    tried = accepted = 0
    for path in leaves(files):
        for value in OTHERS:
            if len(path) == 1 or path == (0, "digest"):
                continue
            other = changed(files, path, value)
            if json.dumps(other) == json.dumps(files):
                continue
            tried += 1
            try:
                metadata.read(write(tmp_path / str(STEP), *other))
                accepted += 1
            except DamagedCheckpointError:
                pass
    assert accepted == 0 and tried > 600


@pytest.mark.parametrize("sealed", [True, False])
def test_a_step_under_the_name_of_another_is_damaged(tmp_path, sealed):
    meta, data = saved()
    files = metadata.seal(STEP, meta, data) if sealed else (meta, data)
    for name in ("595", "601", "1", "0"):
        with pytest.raises(DamagedCheckpointError, match=f"{name} is damaged"):
            metadata.read(write(tmp_path / name, *files))


def test_files_of_two_steps_do_not_go_together(tmp_path):
    (meta, data), (other, _) = (metadata.seal(s, *saved()) for s in (STEP, 595))
    for files in ((other, data), ({**meta, "digest": other["digest"]}, data)):
        with pytest.raises(DamagedCheckpointError, match="do not match their digest"):
            metadata.read(write(tmp_path / str(STEP), *files))


ELSEWHERE = [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE]
ELSEWHERE += [errno.ENFILE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EAGAIN, errno.EINTR]


@pytest.mark.parametrize("number", ELSEWHERE, ids=errno.errorcode.get)
def test_a_file_that_cannot_be_opened_is_not_damaged(tmp_path, monkeypatch, number):
    folder = write(tmp_path / "checkpoints" / str(STEP), *metadata.seal(STEP, *saved()))

    def refuse(self, *_):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    for read in (
        lambda: metadata.read(folder),
        lambda: listing.saved_meta(tmp_path),
        lambda: listing.check_resumable(tmp_path, Config(), {}, start_over=True),
        lambda: list(listing.readable_metas(tmp_path, [STEP])),
    ):
        with pytest.raises(UnreadableCheckpointError, match=r"600 cannot be read.*nothing has"):
            read()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP])
def test_a_file_that_is_not_there_is_damage(tmp_path, monkeypatch, number):
    folder = write(tmp_path / str(STEP), *metadata.seal(STEP, *saved()))
    error = OSError(number, os.strerror(number))
    monkeypatch.setattr(Path, "read_bytes", lambda self: (_ for _ in ()).throw(error))
    with pytest.raises(DamagedCheckpointError):
        metadata.read(folder)


# (message of TensorStore 0.1.86, our error).
TENSORSTORE = [
    ("PERMISSION_DENIED: Error opening \"zarr\" driver: Failed to open: \"/w/manifest.ocdbt\": "
     "Permission denied [os_error_code='13']", UnreadableCheckpointError),
    ("INTERNAL: Failed to read: Input/output error [os_error_code='5']", UnreadableCheckpointError),
    ("UNKNOWN: [OS error 116: ESTALE Stale file handle]", UnreadableCheckpointError),
    ("NOT_FOUND: Metadata at \"step/.zarray\" does not exist", DamagedCheckpointError),
    ("NOT_FOUND: Failed to open: No such file or directory [os_error_code='2']",
     DamagedCheckpointError),
    ("DATA_LOSS: Error decoding chunk: CRC mismatch", DamagedCheckpointError),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind"), TENSORSTORE)
def test_errors_of_tensorstore_are_classified_by_their_errno(text, kind):
    assert type(metadata.explained(Path("w/5"), ValueError(text))) is kind


def test_if_all_steps_are_damaged_a_run_starts_over_only_with_the_flag(tmp_path):
    folder = write(tmp_path / "checkpoints" / str(STEP), "{", "{")
    with pytest.raises(CheckpointError, match=r"steps 600, and none.*--start_over"):
        listing.check_resumable(tmp_path, Config(), {})
    listing.check_resumable(tmp_path, Config(), {}, start_over=True)
    assert folder.is_dir() and listing.saved_meta(tmp_path) is None


def test_only_names_that_orbax_gives_are_steps(tmp_path):
    names = ["5", "0", "007", "²", "٣", "5.damaged", "7.orbax-checkpoint-tmp", "-3", "1e3", "10"]
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "12").touch()
    assert listing.steps(tmp_path) == [10, 5, 0]
    assert listing.steps(tmp_path / "none") == []


def test_a_folder_of_checkpoints_that_cannot_be_listed_gives_one_line(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UnreadableCheckpointError, match=r"checkpoints cannot be read .*Permission"):
        listing.saved_meta(tmp_path)
