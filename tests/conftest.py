"""Shared fixtures: eight host devices, a compilation cache, one glyph dataset, small runs."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Before JAX is imported: tests see eight devices, and compile each program once.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"

import pytest

from fsdit.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EncoderConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainConfig,
    apply_overrides,
    load_experiment,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: two workers share the files, and none may be left for last."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory) -> Path:
    """The embedded dataset, made by its program."""
    directory = tmp_path_factory.mktemp("data") / "glyphs"
    run_module("data_prep.glyphs", f"--output_dir={directory}").check_returncode()
    return directory


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """`siglip` and `vae` in the hub's layout: tiny, random."""
    from experiments import random_weights

    directory = tmp_path_factory.mktemp("weights")
    random_weights.write(directory)
    return directory


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Drawn photos of eight classes, 32 x 32, as the tiny miniImageNet recipe takes them."""
    from tests.data_prep.photos import class_folders

    folder = tmp_path_factory.mktemp("photos")
    run_module(
        "data_prep.convert",
        f"--input={class_folders(folder / 'images', classes=8, images=8)}",
        f"--output_dir={folder / 'dataset'}",
        *("--num_classes=4,2,2", "--image_size=32", "--sets_per_class=4", "--workers=1"),
    ).check_returncode()
    return folder / "dataset"


@pytest.fixture(scope="session")
def encoded(tmp_path_factory, photos, weights) -> Path:
    """`photos` with the features and latents of `weights`."""
    dataset = tmp_path_factory.mktemp("encoded") / "dataset"
    shutil.copytree(photos, dataset)
    run_module(
        "data_prep.encode",
        f"--dataset_dir={dataset}",
        f"--encoder={weights / 'siglip'}",
        f"--vae={weights / 'vae'}",
    ).check_returncode()
    return dataset


@pytest.fixture
def frozen_config(photos, weights) -> Config:
    """The tiny miniImageNet recipe on `photos` and `weights`: every frozen part, in seconds."""
    config = load_experiment(str(ROOT / "experiments" / "miniimagenet_tiny.py"))
    return apply_overrides(
        config,
        {
            "data.dataset_dir": str(photos),
            "model.encoder.location": str(weights / "siglip"),
            "model.codec.location": str(weights / "vae"),
        },
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Makes, once for each choice of flags, the run that others are compared with."""
    from tests.processes import finish, start

    made: dict[tuple[str, ...], Path] = {}

    def run(experiment: Path, *flags: str) -> Path:
        if flags not in made:
            workdir = tmp_path_factory.mktemp("undisturbed") / "run"
            status, output = finish(start(experiment, workdir, *flags))
            assert status == 0, output
            made[flags] = workdir
        return made[flags]

    return run


@pytest.fixture
def small_config(glyphs) -> Config:
    return small_run(glyphs)


def small_run(glyphs: Path) -> Config:
    """A run of seconds: every part of the model and of telemetry, at its smallest."""
    return Config(
        name="small",
        data=DataConfig(
            dataset_dir=str(glyphs), batch_size=16, shots=5, source="sampled", flip=False
        ),
        model=ModelConfig(
            hidden_size=32,
            depth=2,
            num_heads=2,
            patch_size=6,
            num_latents=4,
            encoder=EncoderConfig(patch_size=6, hidden_size=32, depth=1, num_heads=2),
            dtype="float32",
        ),
        sampling=SamplingConfig(num_steps=3, guidance_scale=2.0),
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=5),
        train=TrainConfig(
            num_steps=20, ema_decay=0.9, log_interval=1, eval_interval=10, eval_batches=1
        ),
        checkpoint=CheckpointConfig(interval=5, keep_last=2),
    )


def experiment_file(path: Path, config: Config) -> Path:
    """Writes `config` as an experiment file, for programs started as processes."""
    from fsdit.config import to_dict

    path.write_text(
        f"from fsdit.config import from_dict\n\n\ndef get_config():\n"
        f"    return from_dict({to_dict(config)!r})\n"
    )
    return path


def environment(devices: int = 1) -> dict[str, str]:
    """Environment of a child process that sees `devices` host devices."""
    return {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }


def run_module(module: str, *flags: str, devices: int = 1, timeout: float = 600):
    """Runs `python -m module flags` to its end; output captured as text."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, flags)],
        env=environment(devices),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def small_disk_at(folder: Path, size: str) -> Iterator[Path]:
    """A new file system of `size` ("200k") for a test; where none can be mounted, it is skipped."""
    from experiments.benchmarks.small_disk import small_disk

    with small_disk(folder, size) as mounted:
        if not mounted:
            pytest.skip("mounting a small tmpfs needs root")
        yield folder
