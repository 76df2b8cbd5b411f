"""Exports a run's EMA weights for sampling, as safetensors with their configuration.

    python -m fsdit.export --workdir=runs/glyphs --output=exported

The export can be used by `fsdit.sample --model=exported`, and in Python by
fsdit.load("exported"). Frozen networks are not copied, only digests of their weights.
--config.model.encoder.location=DIR says where they are, here and when the export is used.
"""

from fsdit import program, storage

_WORKDIR = program.define_path("workdir", None, "Directory of the run.", required=True)
_OUTPUT = program.define_path("output", None, "The new folder to write.", required=True)
_OVERRIDES = program.define_overrides()
_STEP = program.define_step()


def main(argv: list[str]) -> None:
    del argv
    from fsdit.parallel import backend
    from fsdit.sampling import exported
    from fsdit.training.run import load_generator

    with storage.new_folder(_OUTPUT.value, seal="config.json") as output:
        exported.check_free(output)
        backend.open_devices()
        generator = load_generator(_WORKDIR.value, _OVERRIDES(), _STEP())
        exported.save(output, generator)
    print(f"{_OUTPUT.value}: EMA weights of step {generator.step}")


if __name__ == "__main__":
    program.run(main)
