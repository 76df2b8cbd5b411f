"""Exports a run's EMA weights for sampling, as safetensors with their configuration.

    python -m fsdit.export --workdir=runs/glyphs --output=exported

The export can be used by `fsdit.sample --model=exported`, and in Python by
fsdit.load("exported"). README.md in it is a model card, with the figures of fsdit.evaluate where
the workdir holds those of the same weights. Frozen networks are not copied, only digests of
their weights. --config.model.encoder.location=DIR says where they are, here and when the export
is used. An export holds one model: --config.sampling.guide is for its use.
"""

from absl import flags

from fsdit import program, storage
from fsdit.checks import check_unguided

_WORKDIR = program.define_path("workdir", None, "Directory of the run.", required=True)
_OUTPUT = program.define_path("output", None, "The new folder to write.", required=True)
_LICENSE = flags.DEFINE_string(
    "license", "", "Licence of the weights, as the hub writes it; empty: the card says unknown."
)
_RESULTS = program.define_paths(
    "results",
    "Folders that fsdit.evaluate wrote, for the card; by default those in the workdir that are of "
    "the same weights. Empty: none.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "float16"], "Type of the weights in the file."
)
_OVERRIDES = program.define_overrides()
_STEP = program.define_step()
_EMA = program.define_ema()


def main(argv: list[str]) -> None:
    del argv
    from fsdit.evaluation import model_card
    from fsdit.parallel import backend
    from fsdit.sampling import exported
    from fsdit.sampling.export_files import NO_GUIDE
    from fsdit.training import run

    with storage.new_folder(_OUTPUT.value, seal="config.json") as output:
        exported.check_free(output)
        chosen = _WORKDIR.value, _OVERRIDES(), _STEP(), _EMA.value
        check_unguided(run.saved_config(*chosen), NO_GUIDE)
        backend.open_devices()
        generator = run.load_generator(*chosen)
        results = model_card.find_results(_WORKDIR.value, generator, _RESULTS.value)
        dataset = run.saved_dataset(*chosen)
        card = model_card.render(generator, dataset, results, _LICENSE.value)
        exported.save(output, generator, card, _DTYPE.value)
    print(f"{_OUTPUT.value}: EMA weights of step {generator.step}, decay {generator.ema_decay}")


if __name__ == "__main__":
    program.run(main)
