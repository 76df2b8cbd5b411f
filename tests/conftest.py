"""Shared fixtures: eight host devices, a compilation cache, one glyph dataset, small runs.

Tests without a marker are those of `make check`: they start no process. `medium` ones
start programs or compile for long, `large` ones are in `make test-all` only.
"""

import collections
import contextlib
import gc
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.programs import QUICK_COMPILATION, ROOT, run_module

# Before JAX is imported: tests see eight devices, and compile each program once.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_COMPILATION}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
os.environ["LOKY_MAX_CPU_COUNT"] = "1"  # joblib, of scikit-learn, would start lscpu to count

import hypothesis
import pytest
from filelock import FileLock

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
from tests import programs

programs.preloading_environment()
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, for programs under test too
hypothesis.settings.register_profile("quick", max_examples=25, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=200, deadline=None)
hypothesis.settings.load_profile("quick")


def pytest_collection_finish() -> None:
    """Takes what was imported out of garbage collection, which took a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with large tests first, then medium ones: none of them may be left for last."""
    largest = collections.defaultdict(int)
    for item in items:
        largest[item.path] = max(largest[item.path], _size(item))
    items.sort(key=lambda item: -largest[item.path])


def _size(item: pytest.Item) -> int:
    """0 for a test of `make check`, 1 for a medium one, 2 for a large one."""
    return 2 if item.get_closest_marker("large") else int(bool(item.get_closest_marker("medium")))


_started: collections.Counter[str] = collections.Counter()  # events of this worker, by name


@sys.addaudithook  # which cannot be removed
def _count(event: str, arguments: tuple) -> None:
    if event in ("subprocess.Popen", programs.FORKED):
        _started[event] += 1


_BEFORE = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_BEFORE] = _started.total()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """JUnit's report says how many processes a test and its fixtures started."""
    item.user_properties.append(("processes", _started.total() - item.stash[_BEFORE]))


@pytest.fixture(autouse=True)
def _own_tier(request, monkeypatch) -> None:
    """A test of `make check` fails where it starts a process."""

    def refuse(*arguments, **choices):
        pytest.fail("this test starts a process: mark it medium or large")

    if not _size(request.node):
        monkeypatch.setattr(subprocess, "Popen", refuse)
        monkeypatch.setattr(programs, "_fork", refuse)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, which the first worker that needs it makes for all of them."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            made = folder.with_suffix(".partial")
            make(made)
            made.rename(folder)
    return folder


@pytest.fixture
def all_cores(tmp_path_factory) -> Iterator[None]:
    """Held by one test at a time: pods of four processes would slow each other to a stop."""
    base = tmp_path_factory.getbasetemp()
    with FileLock((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cores.lock"):
        yield


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory) -> Path:
    """The embedded dataset, made by its program."""

    def make(folder: Path) -> None:
        run_module("data_prep.glyphs", f"--output_dir={folder}").check_returncode()

    return made_once(tmp_path_factory, "glyphs", make)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """`siglip` and `vae` in the hub's layout: tiny, random."""
    from experiments.benchmarks import random_weights

    return made_once(tmp_path_factory, "weights", random_weights.write)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Drawn photos of eight classes, 32 x 32, as the tiny miniImageNet recipe takes them."""
    from tests.data_prep.conversion.photos import class_folders

    def make(folder: Path) -> None:
        images = class_folders(tmp_path_factory.mktemp("photos") / "images", classes=8, images=8)
        flags = ("--num_classes=4,2,2", "--image_size=32", "--sets_per_class=4", "--workers=1")
        paths = (f"--input={images}", f"--output_dir={folder}")
        run_module("data_prep.convert", *paths, *flags).check_returncode()

    return made_once(tmp_path_factory, "photos", make)


@pytest.fixture(scope="session")
def encoded(tmp_path_factory, photos, weights) -> Path:
    """`photos` with the features and latents of `weights`."""

    def make(folder: Path) -> None:
        shutil.copytree(photos, folder)
        spec = (f"--encoder={weights / 'siglip'}", f"--vae={weights / 'vae'}")
        run_module("data_prep.encode", f"--dataset_dir={folder}", *spec).check_returncode()

    return made_once(tmp_path_factory, "encoded", make)


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


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The run that others are compared with, trained once for an experiment and its flags."""
    from tests.processes import finish, start

    def run(experiment: Path, *flags: str) -> Path:
        def train(workdir: Path) -> None:
            status, output = finish(start(experiment, workdir, *flags))
            assert status == 0, output

        content = "\n".join((experiment.read_text(), *flags))
        name = f"undisturbed-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        return made_once(tmp_path_factory, name, train)

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


@contextlib.contextmanager
def small_disk_at(folder: Path, size: str) -> Iterator[Path]:
    """A new file system of `size` ("200k") for a test; where none can be mounted, it is skipped."""
    from experiments.benchmarks.lifecycle.small_disk import small_disk

    with small_disk(folder, size) as mounted:
        if not mounted:
            pytest.skip("mounting a small tmpfs needs root")
        yield folder
