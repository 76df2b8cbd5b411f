"""One side of `commits`: works whenever a line comes in, and prints images a second.

It runs with the code of any commit, so it imports by the names of old and new ones, and passes
arguments whose places never changed.
"""

import importlib
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from fsdit.config import Config, DataConfig, EncoderConfig, ModelConfig, SamplingConfig

_SIZE, _SHOTS = 24, 5


def _module(*names: str):
    """The first of these modules that there is."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
    raise ModuleNotFoundError(f"none of {names}")


def _recipe(count: int) -> tuple[Callable[[], object], int]:
    config = importlib.import_module("experiments.glyphs").get_config()
    return _generated(config.model, config.sampling, count)


def _sampling(count: int) -> tuple[Callable[[], object], int]:
    encoder = EncoderConfig(patch_size=6, hidden_size=64, depth=1, num_heads=4)
    sizes = {"hidden_size": 128, "depth": 6, "num_heads": 4, "patch_size": 4}
    model = ModelConfig(**sizes, num_latents=0, encoder=encoder, dtype="float32")
    sampling = SamplingConfig(num_steps=30, guidance_scale=3.0, guidance_interval=(0.0, 0.6))
    return _generated(model, sampling, count)


def _generated(
    model: ModelConfig, sampling: SamplingConfig, count: int
) -> tuple[Callable[[], object], int]:
    module = _module("fsdit.sampling.generator", "fsdit.models.generator")
    data = DataConfig(dataset_dir="none", shots=_SHOTS)
    config = Config(data=data, model=model, sampling=sampling)
    networks, frozen = module.online_networks(config, _SIZE, 1)
    generator = module.Generator(config, networks, frozen, networks.init(0), 0)
    shape = (_SHOTS, _SIZE, _SIZE, 1)
    supports = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return lambda: generator.draw(supports, count, batch_size=count), count


def _training(count: int) -> tuple[Callable[[], object], int]:
    module = _module(
        "experiments.benchmarks.compute.train_step", "experiments.benchmarks.train_step"
    )
    train = module.trainer(module.config(tokens=True, scan=True))
    return lambda: jax.block_until_ready(train(count)), count * module.BATCH


_WORK = {"sampling": _sampling, "recipe": _recipe, "training": _training}


def main() -> None:
    work, images = _WORK[sys.argv[1]](int(sys.argv[2]))
    for _ in sys.stdin:
        begun = time.perf_counter()
        work()
        print(images / (time.perf_counter() - begun), flush=True)


if __name__ == "__main__":
    main()
