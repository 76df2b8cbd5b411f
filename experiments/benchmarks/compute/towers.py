"""Images/s of frozen vision towers and of their PyTorch originals, in float32 on the CPU.

    python -m experiments.benchmarks.compute.towers

The weights are random, saved by transformers and loaded here. Both sides get the same prepared
images and take turns in one process; the best turn counts. The tower is also measured with its
preprocessing. Needs the packages of the test extra.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from absl import flags

from fsdit import program
from fsdit.models.pretrained.encoder import load_encoder

_BATCH = flags.DEFINE_integer("batch", 8, "Images in a batch.")
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each side.")
_MODELS = flags.DEFINE_list(
    "models", ["siglip", "dinov2"], "Any of siglip (B/16) and dinov2 (B/14)."
)


def siglip() -> tuple[torch.nn.Module, transformers.SiglipImageProcessorPil]:
    """SigLIP 2 B/16-224."""
    config = transformers.SiglipVisionConfig()
    return transformers.SiglipVisionModel(config), transformers.SiglipImageProcessorPil(resample=2)


def dinov2() -> tuple[torch.nn.Module, transformers.BitImageProcessorPil]:
    """DINOv2 B/14, trained at 518, for images of 224."""
    config = transformers.Dinov2Config(image_size=518)
    processor = transformers.BitImageProcessorPil(size={"shortest_edge": 256})
    return transformers.Dinov2Model(config), processor


def main(argv: list[str]) -> None:
    del argv
    makers = {"siglip": siglip, "dinov2": dinov2}
    for name in _MODELS.value:
        compare(name, *makers[name]())
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def compare(name: str, model: torch.nn.Module, processor: transformers.BaseImageProcessor) -> None:
    """Prints images/s of both sides, and how much their outputs differ."""
    with tempfile.TemporaryDirectory() as folder:
        model.eval().save_pretrained(folder)
        processor.save_pretrained(folder)
        encoder, params = load_encoder(str(Path(folder)))
    params = jax.device_put(params)
    images = np.random.default_rng(0).integers(0, 256, (1, _BATCH.value, 256, 256, 3), np.uint8)
    prepared = jax.jit(encoder.preprocessing)(images[0])
    channels_first = torch.from_numpy(np.asarray(prepared).transpose(0, 3, 1, 2).copy())
    tower = jax.jit(lambda params, x: encoder.tower(params)(x))
    encode = jax.jit(encoder)

    def original() -> np.ndarray:
        with torch.inference_mode():
            return model(channels_first).pooler_output.numpy()

    rates, results = measure(
        {
            "PyTorch": original,
            "ours": lambda: np.asarray(tower(params, prepared)[0]),
            "ours with preprocessing": lambda: np.asarray(encode(params, images)[0][0]),
        }
    )
    error = np.linalg.norm(results["ours"] - results["PyTorch"])
    print(f"{name}, batches of {_BATCH.value}, images/s:")
    for side, values in rates.items():
        turns = ", ".join(f"{v:.2f}" for v in values)
        ratio = max(values) / max(rates["PyTorch"])
        print(f"  {side}: {max(values):.2f} (of {turns}), ratio {ratio:.2f}")
    print(f"  relative difference {error / np.linalg.norm(results['PyTorch']):.1e}")


def measure(
    sides: dict[str, Callable[[], np.ndarray]],
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """(images/s of each turn, result) of each side. A first call of each is not measured."""
    results = {side: call() for side, call in sides.items()}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(_TURNS.value):
        for side, call in sides.items():
            start = time.perf_counter()
            call()
            rates[side].append(_BATCH.value / (time.perf_counter() - start))
    return rates, results


if __name__ == "__main__":
    program.run(main)
