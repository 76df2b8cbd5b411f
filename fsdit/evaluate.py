"""Few-shot evaluation of a run's EMA weights.

    python -m fsdit.evaluate --workdir=runs/glyphs --split=test --output=runs/glyphs/test
    python -m fsdit.evaluate --workdir=runs/glyphs --split=test --output=runs/glyphs/shots \\
      --config.evaluation.shots=1,5 --config.evaluation.guidance_scales=1,2,3

Makes samples of classes of the split, and of the training split beside them. Compares them
with real images and with baselines (docs/evaluation.md). Prints the scores that matter most,
and writes report.html, results.json, samples.png, TensorBoard's files and the samples; a second
start goes on where the first one stopped.

The protocol is config.evaluation; the solver and guidance are config.sampling. Flags change
these settings, and all others that do not change what was trained.
"""

import dataclasses
import hashlib
import json

from fsdit.features.staging import with_local_copies
from fsdit.parallel import preemption

if __name__ == "__main__":  # before the slow imports; complete files stay
    preemption.listen(at_once=True)

from absl import flags

from fsdit import program, storage
from fsdit.checks import validate
from fsdit.data.layout import dataset_fingerprint
from fsdit.data.run_dataset import read_run_dataset
from fsdit.program.ownership import owned

_WORKDIR = program.define_path("workdir", None, "Directory of the run.", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "val", "test"], "Split of the classes.")
_OUTPUT = program.define_path(
    "output", None, "Where to write the result.", required=True, folder=True
)
_OVERRIDES = program.define_overrides()
_STEP = program.define_step()
_EMA = program.define_ema()


def main(argv: list[str]) -> None:
    del argv
    import jax

    from fsdit.evaluation import evaluate
    from fsdit.evaluation.about import about
    from fsdit.evaluation.protocol import make_cells
    from fsdit.evaluation.report import terminal, write
    from fsdit.evaluation.samples import EpisodeSampler, SampleFiles, to_source
    from fsdit.parallel import backend
    from fsdit.sampling.guide import check_guide
    from fsdit.training import run as runs
    from fsdit.training.checkpoints.verification import fingerprint

    workdir = _WORKDIR.value
    # First what finds the user's mistakes: none should wait for the weights.
    chosen = workdir, _OVERRIDES(), _STEP(), _EMA.value
    saved = runs.saved_config(*chosen)
    validate(saved)
    config = with_local_copies(saved)
    info = read_run_dataset(config)
    cells = make_cells(config, info, _SPLIT.value)
    check_guide(config, info.image_size, info.channels)
    backend.open_devices()
    backend.check_attention(config, jax.devices())
    inputs = evaluate.open_evaluation(config, info, cells)

    run = runs.load_run(*chosen)
    sampler = EpisodeSampler(run.config, run.spec, run.feed, run.mesh, run.guide)
    guide = run.guide.sha256 if run.guide else ""
    weights = json.dumps(fingerprint(run.ema), sort_keys=True)
    source = {
        "step": run.step,
        "weights": hashlib.sha256(weights.encode()).hexdigest(),
        "dataset": dataset_fingerprint(config.data.dataset_dir),
        "cells": [to_source(cell) for cell in cells],
        "batch_sizes": [sampler.batch_size(cell) for cell in cells],
        **({"guide": guide} if guide else {}),
    }
    with owned(_OUTPUT.value), storage.changed_folder(_OUTPUT.value) as output:
        shape = info.image_size, info.image_size, info.channels
        older_sizes = tuple(map(sampler.largest_batch, cells))
        files = SampleFiles(output, source, shape, older_sizes)
        files.check_room(cells)
        results, pictures = evaluate.evaluate(
            run.config, info, inputs, sampler, files, run.ema, run.step
        )
        made_of = about(saved, info, run.ema, run.step, runs.training_seconds(workdir, run.step))
        results = dataclasses.replace(results, guide=guide, ema_decay=run.ema_decay, about=made_of)
        write.write(output, results, pictures)
        write.write_tensorboard(output, results, pictures)
    place = storage.place(_OUTPUT.value)
    print(terminal.summary(results))
    print(f"picture: {place / 'samples.png'}\nreport: {place / 'report.html'}")


if __name__ == "__main__":
    program.run(main)
