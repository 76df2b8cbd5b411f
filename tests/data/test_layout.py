"""Fingerprints of datasets, and descriptions of features and latents in dataset.json."""

import hashlib
import json

import pytest

from fsdit.data import layout, records
from fsdit.errors import DataError
from tests.data.feature_sets import (
    FEATURES,
    LATENTS,
    POOLED,
    described,
    features,
    write,
)


def test_the_fingerprint_covers_images_episodes_and_the_named_features(tmp_path):
    described(tmp_path)
    before = layout.dataset_fingerprint(tmp_path)
    with pytest.raises(DataError, match="train: the manifest lists no features-a files"):
        layout.dataset_fingerprint(tmp_path, ["features-a"])
    payloads = [records.encode_features(features(i)) for i in range(7)]
    write(tmp_path / "train", "features-a-b", payloads)
    with pytest.raises(DataError, match="lists no features-a files"):
        layout.dataset_fingerprint(tmp_path, ["features-a"])
    write(tmp_path / "train", "features-a", payloads)
    assert layout.dataset_fingerprint(tmp_path) == before
    both = layout.dataset_fingerprint(tmp_path, ["features-a"])
    assert both != before
    write(tmp_path / "train", "features-a-b", payloads[::-1])
    assert layout.dataset_fingerprint(tmp_path, ("features-a",)) == both
    write(tmp_path / "train", "features-a", payloads[::-1])
    assert layout.dataset_fingerprint(tmp_path, ("features-a",)) != both


def test_the_fingerprint_of_a_dataset_without_features_is_that_of_all_its_files(tmp_path):
    """Older versions computed it so; it must not change, or their runs could not resume."""
    described(tmp_path)
    digest = hashlib.sha256()
    for name, entry in sorted(layout.read_manifest(tmp_path / "train").items()):
        digest.update(f"train/{name} {entry['sha256']}\n".encode())
    assert layout.dataset_fingerprint(tmp_path) == digest.hexdigest()


def test_descriptions_survive_dataset_json(tmp_path):
    described(tmp_path, features={"a": FEATURES, "a-b": POOLED}, latents={"a": LATENTS})
    info = layout.read_dataset_info(tmp_path)
    assert info.features == {"a": FEATURES, "a-b": POOLED}
    assert info.latents == {"a": LATENTS}


def test_a_description_of_an_older_version_is_read_and_its_checksum_checked(tmp_path):
    described(tmp_path)
    path = tmp_path / "dataset.json"
    values = json.loads(path.read_text())
    for name in ("features", "latents", "sha256"):
        del values[name]
    values |= {"encoders": [], "vaes": []}
    text = json.dumps(values, ensure_ascii=False, sort_keys=True)
    signed = {**values, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    path.write_text(json.dumps(signed))
    info = layout.read_dataset_info(tmp_path)
    assert info.features == info.latents == {}
    path.write_text(json.dumps(signed | {"encoders": ["a"]}))
    with pytest.raises(DataError, match=r"dataset.json: damaged or edited"):
        layout.read_dataset_info(tmp_path)


@pytest.mark.parametrize("fields", [{"dtype": "float32"}, {"dim": 0}, {"grid": [2]}, {"x": 1}])
def test_a_description_that_is_wrong_is_named(tmp_path, fields):
    described(tmp_path, features={"a": FEATURES})
    path = tmp_path / "dataset.json"
    values = json.loads(path.read_text())
    values["features"]["a"] |= fields
    path.write_text(json.dumps(values | {"sha256": None}))
    with pytest.raises(DataError, match=rf"dataset.json: .*features.a.{next(iter(fields))}"):
        layout.read_dataset_info(tmp_path)
