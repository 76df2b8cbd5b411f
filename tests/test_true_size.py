"""The miniImageNet recipe at its true size, with random weights, for one step."""

import shutil

import pytest

from experiments.benchmarks import random_weights
from tests.data_prep.conversion.photos import class_folders
from tests.processes import rows
from tests.programs import ROOT, run_module


@pytest.fixture
def folder(tmp_path):
    """A temporary folder whose files, which take gigabytes, are deleted after the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.large
def test_one_step_of_b2_saves_validates_and_samples(folder):
    """188 M parameters, latents of 28 x 28 x 4, SigLIP 2 B/16-224 and the SD VAE."""
    random_weights.write(folder / "weights", size="base")
    dataset, workdir = folder / "dataset", folder / "run"
    photos = class_folders(folder / "photos", classes=2, images=6, size=(224, 224))
    run_module(
        "data_prep.convert",
        f"--input={photos}",
        f"--output_dir={dataset}",
        *("--num_classes=1,1,0", "--image_size=224", "--sets_per_class=1", "--workers=1"),
    ).check_returncode()
    result = run_module(
        "fsdit.main",
        f"--config={ROOT / 'experiments' / 'miniimagenet_b2.py'}",
        f"--workdir={workdir}",
        f"--config.data.dataset_dir={dataset}",
        f"--config.model.encoder.location={folder / 'weights' / 'siglip'}",
        f"--config.model.codec.location={folder / 'weights' / 'vae'}",
        # Less work for a CPU: one repetition of each part, and small batches.
        *("--config.train.num_steps=1", "--config.data.batch_size=2"),
        *("--config.features.encode_batch=8", "--config.train.eval_batches=1"),
        *("--config.train.grid_episodes=1", "--config.sampling.num_steps=1"),
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    assert "188,100,112" in result.stdout
    (row,) = rows(workdir)
    assert 0.5 < row["train/loss"] < 2 and 0.5 < row["val/loss"] < 2
    assert (row["encoder_cache/misses"], row["train/nonfinite_steps"]) == (12, 0)
    assert (workdir / "checkpoints" / "1" / "state").is_dir()
    assert (workdir / "samples" / "1.png").is_file()
