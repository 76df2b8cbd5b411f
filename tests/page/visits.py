"""A model without weights, whose supports can be prepared, and files as a visitor sends them."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fsdit.config import Config, ModelConfig, SamplingConfig
from fsdit.features.frozen import Frozen
from fsdit.models.spec import ModelSpec
from fsdit.sampling.generator import Generator

SIZE = 24


def reader(channels: int = 1) -> Generator:
    """A generator that reads supports and cannot sample."""
    config = Config(name="glyphs", sampling=SamplingConfig(num_steps=7, guidance_scale=2.0))
    return Generator(config, ModelSpec(ModelConfig(), SIZE, channels), Frozen(), {}, step=5)


def stroke(size: tuple[int, int] = (280, 280)) -> Image.Image:
    """A dark stroke on white, away from the middle."""
    image = Image.new("RGB", size, "white")
    width, height = size
    ImageDraw.Draw(image).line((10, 10, width // 2, height // 2), fill="black", width=20)
    return image


def drawing(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def saved(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


def some_pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 1), np.uint8)
