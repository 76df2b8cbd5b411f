"""Photos for the benchmarks: as large as ImageNet's, with about as many bytes."""

from pathlib import Path

import numpy as np
from PIL import Image

_CLASSES = 100
_DISTINCT = 400  # pictures; the files are links to them


def make_photos(root: Path, count: int) -> list[Path]:
    """JPEG files of 500 x 375 and about 100 KB in 100 class folders."""
    originals = root.parent / "originals"
    originals.mkdir()
    for i in range(_DISTINCT):
        rng = np.random.default_rng(i)
        image = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(image.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = smooth + rng.integers(-16, 17, smooth.shape, np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            originals / f"{i}.jpg", quality=88
        )
    files = []
    for i in range(count):
        path = root / f"n{i % _CLASSES:08d}" / f"{i:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(originals / f"{i % _DISTINCT}.jpg")
        files.append(path)
    return files
