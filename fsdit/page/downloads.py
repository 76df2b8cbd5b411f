"""Files that a visitor of the page takes away: a picture, its settings, and the supports.

The settings name a command of `fsdit.sample`. Run beside the unpacked supports, it makes the
picture again, byte for byte on the same machine.
"""

import io
import shlex
import zipfile
from collections.abc import Mapping

from fsdit.data import pictures
from fsdit.data.manifests import json_text
from fsdit.page.session import BATCH_SIZE, Pictures, Request, sampling_of
from fsdit.sampling import record
from fsdit.sampling.generator import Generator

PICTURE, SETTINGS, ALL = "samples.png", "samples.json", "samples.zip"
_SUPPORTS = "supports"
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that ZIP knows: equal content makes equal archives


def files(
    generator: Generator,
    model: str,
    overrides: Mapping[str, str],
    supports: Pictures,
    request: Request,
    samples: Pictures,
) -> dict[str, bytes]:
    """Files by name: PICTURE and SETTINGS, and ALL of these with the supports.

    model: the name or folder that the page was started with. overrides: settings that it was
    started with.
    """
    chosen = {
        **overrides,
        "sampling.guidance_scale": str(request.guidance_scale),
        "sampling.num_steps": str(request.num_steps),
    }
    names = [f"{_SUPPORTS}/{i}.png" for i in range(1, len(supports) + 1)]
    facts = record.facts(
        generator,
        model,
        command=_command(model, chosen, request),
        overrides=chosen,
        supports=[{"files": names}],
        sampling=sampling_of(generator, request),
        num_samples=request.num_samples,
        seed=request.seed,
        batch_size=BATCH_SIZE,
    )
    shown = {
        PICTURE: pictures.zoomed_png(pictures.sample_grid(supports, samples), samples.shape[1]),
        SETTINGS: json_text(facts).encode(),
    }
    as_seen = {name: pictures.png(image) for name, image in zip(names, supports, strict=True)}
    return {**shown, ALL: _archive({**shown, **as_seen})}


def _command(model: str, overrides: Mapping[str, str], request: Request) -> str:
    return shlex.join(
        [
            *("python", "-m", "fsdit.sample", f"--model={record.model_name(model)}"),
            *(f"--supports={_SUPPORTS}", f"--num_samples={request.num_samples}"),
            *(f"--seed={request.seed}", f"--batch_size={BATCH_SIZE}"),
            *(f"--config.{name}={value}" for name, value in overrides.items()),
            "--output=again.png",
        ]
    )


def _archive(content: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), data)
    return file.getvalue()
