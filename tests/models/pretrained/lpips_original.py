"""torch-fidelity's LPIPS with random weights."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file

from tests.evaluation.originals import fidelity

WIDTHS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def vgg16_features() -> torch.nn.Sequential:
    """Build the `features` of torchvision's VGG16 without torchvision."""
    layers, inputs = [], 3
    for width in WIDTHS:
        if width == "M":
            layers.append(torch.nn.MaxPool2d(2, 2))
            continue
        layers += [torch.nn.Conv2d(inputs, width, 3, padding=1), torch.nn.ReLU()]
        inputs = width
    return torch.nn.Sequential(*layers)


def published(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return random tensors (torchvision's VGG16, channel weights of LPIPS v0.1) by their names.

    Kernels keep the size of the activations; channel weights are not negative.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(shape, scale):
        return scale * torch.randn(shape, generator=generator)

    vgg16 = {}
    for name, value in vgg16_features().state_dict().items():
        scale = (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.1
        vgg16[f"features.{name}"] = normal(value.shape, scale)
    vgg16 |= {"classifier.0.weight": normal((3, 5), 1), "classifier.0.bias": normal(3, 1)}
    channels = {
        f"lin{i}.model.1.weight": normal((1, width, 1, 1), 1).abs()
        for i, width in enumerate((64, 128, 256, 512, 512))
    }
    return vgg16, channels


def write(directory: Path, seed: int = 0) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, tensors in zip(("vgg16", "lpips"), published(seed), strict=True):
        save_file(tensors, directory / f"{name}.safetensors")
    return directory


def original(seed: int = 0) -> torch.nn.Module:
    """Return torch-fidelity's LPIPS with the weights of `write`; nothing is downloaded."""
    fidelity("fid")
    from torch_fidelity import sample_similarity_lpips as module

    vgg16, channels = published(seed)
    features = vgg16_features()
    features.load_state_dict(
        {
            name.removeprefix("features."): value
            for name, value in vgg16.items()
            if name.startswith("features.")
        }
    )
    with (
        mock.patch.object(module, "load_state_dict_from_url", return_value=channels),
        mock.patch.object(
            module,
            "torchvision_load_pretrained_vgg16",
            return_value=SimpleNamespace(features=features),
        ),
    ):
        return module.SampleSimilarityLPIPS("random").eval()


def distances(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Distances (R, R) between uint8 images (R, H, W, 1 or 3), computed a pair at a time."""
    rgb = np.broadcast_to(images, (*images.shape[:3], 3)).transpose(0, 3, 1, 2)
    rows = torch.from_numpy(rgb.copy())
    with torch.inference_mode():
        return np.array([[model(a[None], b[None]).item() for b in rows] for a in rows])
