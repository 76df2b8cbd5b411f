"""Shared fixtures: eight host devices, a compilation cache, one glyph dataset, small runs.

Tests without a marker are those of `make check`: they start no process. `medium` ones
start programs or compile for long, `large` ones are in `make test-all` only.
"""

import collections
import contextlib
import dataclasses
import functools
import gc
import hashlib
import inspect
import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.programs import QUICK_COMPILATION, ROOT, run_module

# JAX reads these when it is imported: tests see eight devices, and compile each program once.
# FSDIT_TEST_PLATFORM=cuda runs tests of one device on a GPU, with products in full float32.
PLATFORM = os.environ.get("FSDIT_TEST_PLATFORM", "cpu")
if PLATFORM == "cpu":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_COMPILATION}"
else:
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the workers share the GPU
# Callbacks to the host need JAX's CPU backend beside the GPU's.
os.environ["JAX_PLATFORMS"] = PLATFORM if PLATFORM == "cpu" else f"{PLATFORM},cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
os.environ["LOKY_MAX_CPU_COUNT"] = "1"  # scikit-learn's joblib would start lscpu to count cores

import hypothesis
import pytest
from filelock import FileLock
from jaxtyping import _typeguard

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
# jaxtyping looks up one function's signature again for each leaf that PyTree[...] checks, which
# took four fifths of the time of these checks.
_typeguard.inspect = types.SimpleNamespace(
    **{**vars(inspect), "signature": functools.lru_cache(inspect.signature)}
)
# nohup makes its command ignore SIGHUP, and the programs under test would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
hypothesis.settings.register_profile("quick", max_examples=25, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=200, deadline=None)
hypothesis.settings.load_profile("quick")


def pytest_collection_finish() -> None:
    """Excludes imported objects from garbage collection, which took a twentieth of test time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with large tests first, then medium ones, so that no long file runs last."""
    largest = collections.defaultdict(int)
    for item in items:
        largest[item.path] = max(largest[item.path], _size(item))
    items.sort(key=lambda item: -largest[item.path])


def _size(item: pytest.Item) -> int:
    """0 for a test of `make check`, 1 for a medium one, 2 for a large one."""
    return 2 if item.get_closest_marker("large") else int(bool(item.get_closest_marker("medium")))


_started: collections.Counter[str] = collections.Counter()  # events of this worker, by name


@sys.addaudithook  # the hook stays, since Python cannot remove one
def _count(event: str, arguments: tuple) -> None:
    if event in ("subprocess.Popen", programs.FORKED):
        _started[event] += 1


_BEFORE = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_BEFORE] = _started.total()
    if PLATFORM != "cpu" and item.get_closest_marker("several_devices"):
        pytest.skip("needs several devices")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Records how many processes a test and its fixtures started, for JUnit's report."""
    item.user_properties.append(("processes", _started.total() - item.stash[_BEFORE]))


@pytest.fixture(autouse=True)
def _own_tier(request, monkeypatch) -> None:
    """Fails a test of `make check` that starts a process; multiprocessing goes unseen."""

    def refuse(*arguments, **choices):
        pytest.fail("this test starts a process: mark it medium or large")

    if not _size(request.node):
        monkeypatch.setattr(subprocess, "Popen", refuse)
        monkeypatch.setattr(programs, "_fork", refuse)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, made by the first worker that needs it and shared by all workers."""
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
    """A lock for one test at a time: pods of four processes would slow each other to a stop."""
    base = tmp_path_factory.getbasetemp()
    with FileLock((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cores.lock"):
        yield


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory) -> Path:
    """The glyph dataset, made by data_prep.glyphs."""

    def make(folder: Path) -> None:
        run_module("data_prep.glyphs", f"--output_dir={folder}").check_returncode()

    return made_once(tmp_path_factory, "glyphs", make)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A folder of tiny networks with random weights, `siglip` and `vae`, in the hub's layout."""
    from experiments.benchmarks import random_weights

    return made_once(tmp_path_factory, "weights", random_weights.write)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A dataset of synthetic photos: eight classes, 32 x 32, for the tiny miniImageNet recipe."""
    from tests.data_prep.conversion.photos import class_folders

    def make(folder: Path) -> None:
        images = class_folders(tmp_path_factory.mktemp("photos") / "images", classes=8, images=8)
        flags = ("--num_classes=4,2,2", "--image_size=32", "--sets_per_class=4", "--workers=1")
        paths = (f"--input={images}", f"--output_dir={folder}")
        run_module("data_prep.convert", *paths, *flags).check_returncode()

    return made_once(tmp_path_factory, "photos", make)


@pytest.fixture(scope="session")
def encoded(tmp_path_factory, photos, weights) -> Path:
    """The dataset `photos` with features and latents by the networks of `weights`."""

    def make(folder: Path) -> None:
        shutil.copytree(photos, folder)
        spec = (f"--encoder={weights / 'siglip'}", f"--vae={weights / 'vae'}")
        run_module("data_prep.encode", f"--dataset_dir={folder}", *spec).check_returncode()

    return made_once(tmp_path_factory, "encoded", make)


@pytest.fixture
def frozen_config(photos, weights) -> Config:
    """The tiny miniImageNet recipe on `photos` and `weights`: a run with frozen networks."""
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
    """A function that trains an uninterrupted run, once for an experiment and its flags."""
    from tests.processes import finish, start

    def run(experiment: Path, *flags: str) -> Path:
        def train(workdir: Path) -> None:
            status, output = finish(start(experiment, workdir, *flags))
            assert status == 0, output

        content = "\n".join((experiment.read_text(), *flags))
        name = f"undisturbed-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        return made_once(tmp_path_factory, name, train)

    return run


@pytest.fixture(scope="session")
def _store() -> Iterator[dict[str, str]]:
    """The environment of clients of a server with an empty bucket, one for each worker."""
    from tests.storage.server import client_environment, serving

    with serving() as address:
        yield client_environment(address)


@pytest.fixture
def bucket(_store, monkeypatch, tmp_path) -> str:
    """An empty folder of a bucket, gs://...; local copies go to tmp_path / "cache"."""
    for name, value in _store.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"gs://bucket/{tmp_path.name}"


@pytest.fixture
def small_config(glyphs) -> Config:
    return small_run(glyphs)


def small_run(glyphs: Path) -> Config:
    """Configuration of a run of seconds, with every part of the model and of telemetry."""
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


def one_block(config: Config, **more) -> Config:
    """A model of one block without cross-attention: it compiles in half the time.

    more: further settings of the model.
    """
    changes = {"depth": 1, "cross_attention": "none", **more}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


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
    """A new file system of `size` ("200k"); skips the test where none can be mounted."""
    from experiments.benchmarks.lifecycle.small_disk import small_disk

    with small_disk(folder, size) as mounted:
        if not mounted:
            pytest.skip("mounting a small tmpfs needs root")
        yield folder
