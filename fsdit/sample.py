"""Samples images from supports: a user's picture files, or episodes of the run's dataset.

    python -m fsdit.sample --workdir=runs/glyphs --supports=a.png,b.png --output=grid.png
    python -m fsdit.sample --model=exported --supports=FOLDER --num_samples=64 --output=grid.png
    python -m fsdit.sample --workdir=runs/glyphs --split=test --episode=3 --output=grid.png
    python -m fsdit.sample --model=exported --supports=A --between=B --output=grid.png

Writes the supports beside the samples to grid.png, with --singles each sample to a file in
grid/, and all that is needed to repeat the command to grid.json. Flags such as
--config.sampling.solver=heun change the sampler. With --between or --between_episode the
samples lie on the way from one set of supports to another: a column for each place, a row for
each noise.
"""

import functools
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from fsdit import program, storage
from fsdit.config import Config
from fsdit.data.layout import is_free
from fsdit.errors import ConfigError
from fsdit.features.staging import with_local_copies

_WORKDIR = program.define_path("workdir", None, "Directory of a run, or name a --model.")
_MODEL = program.define_path(
    "model",
    None,
    "Folder of an exported model, or a model that comes with the package: glyphs. Or name a "
    "--workdir.",
)
_SUPPORTS = program.define_paths("supports", "Picture files, or folders of them.")
_EPISODE = flags.DEFINE_multi_integer("episode", None, "Number of an episode; may be repeated.")
_BETWEEN = program.define_paths("between", "A second set: sample between --supports and it.")
_BETWEEN_EPISODE = flags.DEFINE_multi_integer(
    "between_episode", None, "Number of an episode with the second set, in place of --between."
)
_NUM_BETWEEN = flags.DEFINE_integer(
    "num_between", 6, "Places between the two sets, without the sets themselves.", lower_bound=1
)
_SPLIT = flags.DEFINE_string("split", "test", "Split of the run's dataset, for episodes.")
_OUTPUT = program.define_path("output", None, "The PNG file to write.", required=True)
_SINGLES = flags.DEFINE_bool("singles", False, "Write each sample to a file of its own too.")
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 16, "Samples of each set of supports.", lower_bound=1
)
flags.DEFINE_alias("num_drawings", "num_samples")  # its name in older versions
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Samples made at once.", lower_bound=1)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Decides the noise of the samples.", lower_bound=0, upper_bound=2**32 - 1
)
_OVERRIDES = program.define_overrides()
_STEP = program.define_step()
_EMA = program.define_ema()


def _check_flags(output: Path) -> None:
    if bool(_WORKDIR.value) == bool(_MODEL.value):
        raise ConfigError("name either the --workdir of a run or an exported --model")
    if (_SUPPORTS.value is None) == (_EPISODE.value is None):
        raise ConfigError("name either --supports or an --episode")
    if _BETWEEN.value is not None and _BETWEEN_EPISODE.value is not None:
        raise ConfigError("name either --between or a --between_episode")
    between = _BETWEEN.value is not None or _BETWEEN_EPISODE.value is not None
    if between and max(len(_EPISODE.value or []), len(_BETWEEN_EPISODE.value or [])) > 1:
        raise ConfigError("samples lie between two sets: name one --episode and one second set")
    if _MODEL.value and (_EPISODE.value is not None or _BETWEEN_EPISODE.value is not None):
        raise ConfigError("--episode needs a --workdir: an exported --model has no dataset")
    if _MODEL.value and _STEP() != "newest":
        raise ConfigError("--step needs a --workdir: an exported --model has one step")
    if _MODEL.value and _EMA.value is not None:
        raise ConfigError("--ema needs a --workdir: an exported --model has one average")
    if output.suffix != ".png" or not output.parent.is_dir():
        raise ConfigError(f"--output={output} must be a .png file in a folder that exists")
    if _SINGLES.value and not is_free(output.with_suffix("")):
        raise ConfigError(f"{output.with_suffix('')} is not empty: name another --output")


def main(argv: list[str]) -> None:
    del argv
    with storage.output_file(_OUTPUT.value) as output:
        _check_flags(output)
        _sample(output)


def _read_sets(
    files: list[str] | None, episodes: list[int] | None, config: Config, trained: Any
) -> list[Any]:
    """Supports of files, or of each episode; [] where none are named.

    trained: size, channels and preparation of the training images.
    """
    from fsdit.data import supports

    if files is not None:
        size, channels = trained.image_size, trained.channels
        return [supports.from_files(files, size, channels, trained.preparation)]
    if episodes is not None:
        return supports.from_episodes(with_local_copies(config), _SPLIT.value, episodes)
    return []


def _generate(
    generator: Any, sets: list[np.ndarray], weights: list[float]
) -> tuple[list[np.ndarray] | np.ndarray, np.ndarray]:
    """(samples of each set, or at each place between two of them, and all in one grid)."""
    from fsdit.data import pictures

    count, settings = _NUM_SAMPLES.value, {"seed": _SEED.value, "batch_size": _BATCH_SIZE.value}
    total = count * (len(weights) or len(sets))
    with tqdm(total=total, desc="sampling", unit="sample") as bar:
        settings |= {"progress": bar.update}
        if weights:
            samples = generator.generate_between(*sets, weights, count, **settings)
            return samples, pictures.grid_between(*sets, samples)
        samples = [generator.generate(each, count, **settings) for each in sets]
        return samples, pictures.grid_of_sets(list(zip(sets, samples, strict=True)))


def _sample(output: Path) -> None:
    from fsdit.data import pictures
    from fsdit.parallel import backend
    from fsdit.sampling import exported, record
    from fsdit.sampling.guide import check_guide

    # Settings and pictures first, so that a mistake in them is reported before weights load.
    if _WORKDIR.value:
        from fsdit.training import run

        model = _WORKDIR.value
        load = functools.partial(run.load_generator, step=_STEP(), ema=_EMA.value)
        chosen = model, _OVERRIDES(), _STEP(), _EMA.value
        trained, config = run.saved_dataset(*chosen), run.saved_config(*chosen)
    else:
        model, load = _MODEL.value, exported.load
        trained, config = exported.read_settings(model, _OVERRIDES())
    sets = _read_sets(_SUPPORTS.value, _EPISODE.value, config, trained)
    towards = _read_sets(_BETWEEN.value, _BETWEEN_EPISODE.value, config, trained)

    check_guide(config, trained.image_size, trained.channels)
    backend.open_devices()
    generator = load(model, _OVERRIDES())
    # Places on the way to the second set; without one, there is no way.
    last = _NUM_BETWEEN.value + 1
    weights = [i / last for i in range(last + 1)] if towards else []
    samples, grid = _generate(generator, [each.images for each in (*sets, *towards)], weights)

    facts = record.facts(
        generator,
        model,
        command=shlex.join(["python", "-m", "fsdit.sample", *sys.argv[1:]]),
        overrides=_OVERRIDES(),
        supports=[each.origin for each in sets],
        sampling=generator.config.sampling,
        num_samples=_NUM_SAMPLES.value,
        seed=_SEED.value,
        batch_size=_BATCH_SIZE.value,
    )
    if towards:
        facts |= {"between": towards[0].origin, "weights": weights}
    pictures.write_samples(output, grid, np.concatenate(samples), facts, singles=_SINGLES.value)
    where = f"at {len(weights)} places between two sets" if towards else f"of {len(sets)} set(s)"
    made = f"{_NUM_SAMPLES.value} samples {where} of supports"
    print(f"step {generator.step}: {made}: {_OUTPUT.value}")


if __name__ == "__main__":
    program.run(main)
