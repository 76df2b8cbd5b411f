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
from fsdit.data import pictures
from fsdit.data.layout import publish
from fsdit.evaluation import model_card
from fsdit.parallel import backend
from fsdit.sampling import exported
from fsdit.training import run

_WORKDIR = program.define_path("workdir", "runs/longer", "A run of experiments/glyphs.py.")
_OUTPUT = program.define_path("output", "fsdit/weights/glyphs", "Folder to replace.")
_SAMPLES = program.define_path("samples", "tests/weights/glyphs.png", "Picture to replace.")
_CHARACTERS = flags.DEFINE_string("characters", "QΨΩШƔ∞", "Characters of the test split to show.")
_OVERRIDES = program.define_overrides()
_STEP = program.define_step()
_EMA = program.define_ema()

# What `data_prep.glyphs` renders with; matplotlib has these licences beside the fonts.
_FONTS = {
    "DejaVu fonts, as matplotlib ships them": {
        "licence": "Bitstream Vera Fonts Copyright, changes in the public domain",
        "author": "Bitstream, Inc. and the DejaVu fonts team",
    },
    "STIX fonts, as matplotlib ships them": {
        "licence": "STIX Font License of 24 May 2010",
        "author": "STI Pub Companies",
    },
}
_LICENCE = "apache-2.0"  # that of the program
_MORE = """

## In the package
This model comes with fsdit: `fsdit.load("glyphs")`, `python -m fsdit.sample --model=glyphs`, and
`python -m fsdit.app`. Its weights are stored in float16. `make weights` trains, evaluates and
exports it again, from nothing. `examples/` holds supports of characters of the test split, which
training never saw. It knows printed characters, dark on white, that fill the picture: what it
makes of handwriting, thin lines or light on dark is often no character.
"""


def main(argv: list[str]) -> None:
    del argv
    backend.open_devices()
    chosen = _WORKDIR.value, _OVERRIDES(), _STEP(), _EMA.value
    trained = run.load_generator(*chosen)
    dataset = dataclasses.replace(run.saved_dataset(*chosen), sources=_FONTS)
    results = model_card.find_results(_WORKDIR.value, trained, None)
    card = model_card.render(trained, dataset, results, _LICENCE) + _MORE

    output = Path(_OUTPUT.value).absolute()
    partial = output.with_name(f"{output.name}.new")
    shutil.rmtree(partial, ignore_errors=True)
    exported.save(partial, trained, card, stored_type="float16")
    dataset_dir = trained.config.data.dataset_dir
    write_examples(partial / "examples", dataset_dir, _CHARACTERS.value)
    shutil.rmtree(output, ignore_errors=True)
    publish(partial, output)

    samples = example_samples(output)
    pictures.save_picture(Path(_SAMPLES.value), np.concatenate(list(samples), axis=1), zoom=1)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{_OUTPUT.value}: step {trained.step}, {size / 1e6:.1f} MB; {_SAMPLES.value}")


if __name__ == "__main__":
    program.run(main)
