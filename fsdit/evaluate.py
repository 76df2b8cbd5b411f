"""Few-shot evaluation of a run's EMA weights.

    python -m fsdit.evaluate --workdir=runs/glyphs --split=test --output=runs/glyphs/test
    python -m fsdit.evaluate --workdir=runs/glyphs --split=test --output=runs/glyphs/shots \
      --config.evaluation.shots=1,5 --config.evaluation.guidance_scales=1,2,3

Makes samples of classes of the split, and of the training split beside them. Compares them
with real images and with baselines: copied supports, the mean of the supports, and samples of
another class. Writes report.html, results.json, samples.png, TensorBoard's files and the
samples; a second start goes on where the first one stopped.

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
    from fsdit.evaluation.protocol import make_cells
    from fsdit.evaluation.report import write
    from fsdit.evaluation.results import summary
    from fsdit.evaluation.samples import EpisodeSampler, SampleFiles, to_source
    from fsdit.parallel import backend
    from fsdit.sampling.guide import check_guide
    from fsdit.training import run as runs
    from fsdit.training.checkpoints.verification import fingerprint

    workdir = _WORKDIR.value
    # First what finds the user's mistakes: none should wait for the weights.
    chosen = workdir, _OVERRIDES(), _STEP(), _EMA.value
    config = runs.saved_config(*chosen)
    validate(config)
    config = with_local_copies(config)
    info = read_run_dataset(config)
    cells = make_cells(config, info, _SPLIT.value)
    check_guide(config, info.image_size, info.channels)
    backend.open_devices()
    backend.check_attention(config, jax.devices())
    inputs = evaluate.open_evaluation(config, info, cells)

    run = runs.load_run(*chosen)
    sampler = EpisodeSampler(run.config, run.spec, run.feed, run.mesh, run.guide)
    weights = json.dumps(fingerprint(run.ema), sort_keys=True)
    source = {
        "step": run.step,
        "weights": hashlib.sha256(weights.encode()).hexdigest(),
        "dataset": dataset_fingerprint(config.data.dataset_dir),
        "cells": [to_source(cell) for cell in cells],
        "batch_sizes": [sampler.batch_size(cell) for cell in cells],
    }
    guide = run.guide.sha256 if run.guide else ""
    source |= {"guide": guide} if guide else {}
    with owned(_OUTPUT.value), storage.changed_folder(_OUTPUT.value) as output:
        files = SampleFiles(output, source, (info.image_size, info.image_size, info.channels))
        files.check_room(cells)
        results, pictures = evaluate.evaluate(
            run.config, info, inputs, sampler, files, run.ema, run.step
        )
        results = dataclasses.replace(results, guide=guide, ema_decay=run.ema_decay)
        write.write(output, results, pictures)
        write.write_tensorboard(output, results, pictures)
    print(summary(results))
    for label, name in (("picture", "samples.png"), ("report", "report.html")):
        print(f"{label}: {storage.place(_OUTPUT.value) / name}")


if __name__ == "__main__":
    program.run(main)
