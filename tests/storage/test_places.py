"""Paths of flags and settings: which lead into a bucket, and which lead nowhere."""

import pickle
from pathlib import Path

import pytest

from fsdit import storage
from fsdit.config import Config, apply_overrides, check_locations
from fsdit.errors import ConfigError
from fsdit.storage import places

WRONG = {
    "s3://bucket/folder": "s3: is no store",
    "gs:/bucket/folder": "gs: is no store",
    "https://example.org/x": "https: is no store",
    "gs://": "no name of a bucket",
    "gs://ab/x": "no name of a bucket",
    "gs://Bucket/x": "no name of a bucket",
    "gs://bucket": "name a folder of the bucket: gs://bucket/FOLDER",
    "gs://bucket/": "name a folder of the bucket",
    "gs://bucket/a//b": "no empty part",
    "gs://bucket/a/../b": "no ..",
    "gs://bucket/./a": "no .",
}


@pytest.mark.parametrize("path", WRONG)
def test_a_path_that_leads_to_no_bucket_is_refused(path):
    with pytest.raises(ConfigError) as error:
        storage.check_place(path)
    assert WRONG[path] in str(error.value) and str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("path", ["x", "/a/b", "./a", "a:b", "C:", "~/x", "gs", "gs://bucket/a/b/"])
def test_local_paths_and_folders_of_buckets_are_accepted(path):
    storage.check_place(path)


def test_a_setting_is_named_with_its_wrong_path():
    config = apply_overrides(Config(), {"data.dataset_dir": "s3://bucket/folder"})
    with pytest.raises(ConfigError, match=r"^config\.data\.dataset_dir=s3://bucket/folder: s3: "):
        check_locations(config)
    config = apply_overrides(Config(), {"data.cache_dir": "gs://bucket/folder"})
    with pytest.raises(ConfigError, match=r"^config\.data\.cache_dir is for a local copy"):
        check_locations(config)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(places, "_PACKAGES", ("gcsfs", "no_such_package.at_all"))
    with pytest.raises(ConfigError, match=r"pip install 'fsdit\[gcs\]'"):
        storage.check_place("gs://bucket/folder")


def test_both_kinds_of_paths_join_and_can_be_pickled():
    remote, local = storage.place("gs://bucket/a/"), storage.place("b")
    assert str(remote / "c") == "gs://bucket/a/c" and local == Path("b")
    assert pickle.loads(pickle.dumps(remote)) == remote
    assert storage.absolute("gs://bucket/a") == remote
    assert storage.absolute("b") == Path.cwd() / "b"
    assert storage.split(remote / "c") == ("bucket", "a/c")
