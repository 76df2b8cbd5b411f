"""Samples images from supports: a user's picture files, or episodes of the run's dataset.

    python -m fsdit.sample --workdir=runs/glyphs --supports=a.png,b.png --output=grid.png
    python -m fsdit.sample --model=exported --supports=FOLDER --num_samples=64 --output=grid.png
    python -m fsdit.sample --workdir=runs/glyphs --split=test --episode=3 --output=grid.png

Writes the supports beside the samples to grid.png, with --singles each sample to a file in
grid/, and all that is needed to repeat the command to grid.json. Flags such as
--config.sampling.solver=heun change the sampler.
"""

import functools
import shlex
import sys
from pathlib import Path

from absl import flags
from tqdm import tqdm

from fsdit import __version__, program, storage
from fsdit.config import to_dict
from fsdit.data.layout import is_free
from fsdit.data.run_dataset import read_run_dataset
from fsdit.errors import ConfigError
from fsdit.features.staging import with_local_copies

_WORKDIR = program.define_path("workdir", None, "Directory of a run, or name a --model.")
_MODEL = program.define_path("model", None, "Exported model, or name a --workdir.")
_SUPPORTS = program.define_paths("supports", "Picture files, or folders of them.")
_EPISODE = flags.DEFINE_multi_integer("episode", None, "Number of an episode; may be repeated.")
_SPLIT = flags.DEFINE_string("split", "test", "Split of the run's dataset, for --episode.")
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
    if _MODEL.value and _EPISODE.value is not None:
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


def _sample(output: Path) -> None:
    from fsdit.data import pictures, supports
    from fsdit.parallel import backend
    from fsdit.sampling import exported
    from fsdit.sampling.guide import check_guide
    from fsdit.training import run

    # Settings and pictures first, so that a mistake in them is reported before weights load.
    if _WORKDIR.value:
        model = _WORKDIR.value
        load = functools.partial(run.load_generator, step=_STEP(), ema=_EMA.value)
        config = run.saved_config(model, _OVERRIDES(), _STEP(), _EMA.value)
        config = with_local_copies(config, None if _EPISODE.value else ())
        trained = read_run_dataset(config)
    else:
        model, load = _MODEL.value, exported.load
        trained, config = exported.read_settings(model, _OVERRIDES())
    if _EPISODE.value is None:
        size, channels = trained.image_size, trained.channels
        sets = [supports.from_files(_SUPPORTS.value, size, channels, trained.preparation)]
    else:
        sets = supports.from_episodes(config, _SPLIT.value, _EPISODE.value)

    check_guide(config, trained.image_size, trained.channels)
    backend.open_devices()
    generator = load(model, _OVERRIDES())
    count, settings = _NUM_SAMPLES.value, {"seed": _SEED.value, "batch_size": _BATCH_SIZE.value}
    with tqdm(total=len(sets) * count, desc="sampling", unit="sample") as bar:
        samples = [
            generator.generate(each.images, count, progress=bar.update, **settings) for each in sets
        ]

    facts = {
        "command": shlex.join(["python", "-m", "fsdit.sample", *sys.argv[1:]]),
        "version": __version__,
        "model": str(storage.absolute(model)),
        "name": generator.config.name,
        "step": generator.step,
        "ema_decay": generator.ema_decay,
        "overrides": _OVERRIDES(),
        "supports": [each.origin for each in sets],
        "num_samples": count,
        **settings,
        "sampling": to_dict(generator.config.sampling),
        "guide": generator.guide.sha256 if generator.guide else "",
    }
    shown = [(each.images, images) for each, images in zip(sets, samples, strict=True)]
    pictures.write_samples(output, shown, facts, singles=_SINGLES.value)
    print(
        f"step {generator.step}: {count} samples of {len(sets)} set(s) of supports: {_OUTPUT.value}"
    )


if __name__ == "__main__":
    program.run(main)
