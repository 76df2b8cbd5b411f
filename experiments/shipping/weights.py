"""Makes the weights that come with the package, of a trained run of the glyph experiment.

    make weights
    python -m experiments.shipping.weights --workdir=runs/longer

Replaces the folder --output: an export in float16, example supports of characters of the test
split, and a card. Replaces --samples too, a picture of samples that a test compares with what
the weights generate.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
from absl import flags

from experiments.shipping.examples import example_samples, write_examples
from fsdit import program
from fsdit.config import Config
from fsdit.data import pictures
from fsdit.data.layout import publish, read_dataset_info
from fsdit.parallel import backend
from fsdit.sampling import exported
from fsdit.training.run import load_generator

_WORKDIR = program.define_path("workdir", "runs/longer", "A run of experiments/glyphs.py.")
_OUTPUT = program.define_path("output", "fsdit/weights/glyphs", "Folder to replace.")
_SAMPLES = program.define_path("samples", "tests/weights/glyphs.png", "Picture to replace.")
_CHARACTERS = flags.DEFINE_string("characters", "QΨΩШƔ∞", "Characters of the test split to show.")
_OVERRIDES = program.define_overrides()
_STEP = program.define_step()
_EMA = program.define_ema()

_CARD = """# glyphs, the model in the package
Generates characters from one or a few pictures of one: dark on white, {size} x {size} pixels,
greyscale. Weights of step {step} of `experiments/glyphs.py` of fsdit, stored in float16.
`make weights` makes them again from nothing. How well that recipe does on characters that it
never saw is in `docs/results/glyphs.md`.

## Data
`python -m data_prep.glyphs` renders {classes} characters in the fonts that matplotlib ships; the
model learned from the {train} of the training split. `examples/` holds pictures of the test
split, which it never saw.

* DejaVu: licence of the Bitstream Vera fonts; changes by DejaVu are in the public domain.
* STIX: STIX Font License of 24 May 2010 (STI Pub Companies).

Both permit use and redistribution. matplotlib has their texts beside the fonts.

## Limits
Characters of other styles, such as handwriting, thin lines or white on black, are outside of what
it learned from: what it makes of them is often no character. It knows nothing of meaning, and is
meant for trying the program, not for setting text.

## Licence
Apache 2.0, as the program.
"""


def portable(config: Config) -> Config:
    """The configuration without the folders of the machine that trained."""
    data = dataclasses.replace(config.data, dataset_dir="datasets/glyphs", cache_dir="")
    train = dataclasses.replace(config.train, compilation_cache="")
    return dataclasses.replace(config, data=data, train=train)


def main(argv: list[str]) -> None:
    del argv
    backend.open_devices()
    trained = load_generator(_WORKDIR.value, _OVERRIDES(), _STEP(), _EMA.value)
    output = Path(_OUTPUT.value).absolute()
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    exported.save(
        partial,
        dataclasses.replace(trained, config=portable(trained.config)),
        stored_type="float16",
    )
    write_examples(partial / "examples", trained.config.data.dataset_dir, _CHARACTERS.value)
    info = read_dataset_info(trained.config.data.dataset_dir)
    with (partial / "README.md").open("a", encoding="utf-8") as card:
        numbers = {name: len(split.classes) for name, split in info.splits.items()}
        values = {"classes": sum(numbers.values()), "train": numbers["train"]}
        card.write(_CARD.format(size=info.image_size, step=trained.step, **values))

    shutil.rmtree(output, ignore_errors=True)
    publish(partial, output)
    samples = example_samples(output)
    pictures.save_picture(Path(_SAMPLES.value), np.concatenate(list(samples), axis=1), zoom=1)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{_OUTPUT.value}: step {trained.step}, {size / 1e6:.1f} MB; {_SAMPLES.value}")


if __name__ == "__main__":
    program.run(main)
