"""Few-shot evaluation of a run's EMA weights.

    python -m fsdit.evaluate --workdir=runs/glyphs --split=test --output=runs/glyphs/test
    python -m fsdit.evaluate --workdir=runs/glyphs --split=test --output=runs/glyphs/shots \
      --config.evaluation.shots=1,5 --config.evaluation.guidance_scales=1,2,3

Draws classes of the split, and classes of the training split beside them, and judges the
drawings beside real images, copied supports, the mean of the supports, and drawings of
another class. Writes report.html, results.json, drawings.png, TensorBoard's files, and
the drawings; a second start goes on. The protocol is config.evaluation, the solver and
guidance config.sampling; both are flags here, as is what does not change what was trained.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from fsdit.parallel import preemption

if __name__ == "__main__":  # before the imports that take long; whole files are kept
    preemption.listen(at_once=True)

from absl import flags

from fsdit import program
from fsdit.checks import validate
from fsdit.config import to_dict
from fsdit.data.layout import dataset_fingerprint
from fsdit.data.run_dataset import read_run_dataset
from fsdit.program.ownership import owned

_WORKDIR = program.define_path("workdir", None, "Directory of the run.", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "val", "test"], "Classes to draw.")
_OUTPUT = program.define_path(
    "output", None, "Where to write the result.", required=True, folder=True
)
_OVERRIDES = program.define_overrides()
_STEP = program.define_step()


def main(argv: list[str]) -> None:
    del argv
    from fsdit.evaluation import evaluate
    from fsdit.evaluation.protocol import make_plans
    from fsdit.evaluation.report import write
    from fsdit.evaluation.results import summary
    from fsdit.evaluation.samples import Drawer, Shards
    from fsdit.parallel import backend
    from fsdit.training import run as runs
    from fsdit.training.checkpoints.verification import fingerprint

    output, workdir = Path(_OUTPUT.value), Path(_WORKDIR.value)
    # Mistakes first: none should wait for the weights.
    config = runs.saved_config(workdir, _OVERRIDES(), _STEP())
    validate(config)
    info = read_run_dataset(config)
    plans = make_plans(config, info, _SPLIT.value)
    backend.open_devices()
    opened = evaluate.open_evaluation(config, info, plans)

    run = runs.load_run(workdir, _OVERRIDES(), _STEP())
    drawer = Drawer(run.config, run.spec, run.feed, run.mesh)
    weights = json.dumps(fingerprint(run.ema), sort_keys=True)
    drawn_of = {
        "step": run.step,
        "weights": hashlib.sha256(weights.encode()).hexdigest(),
        "dataset": dataset_fingerprint(config.data.dataset_dir),
        "plans": [dataclasses.asdict(p) | {"sampling": to_dict(p.sampling)} for p in plans],
        "batch_sizes": [drawer.batch_size(plan) for plan in plans],
    }
    shards = Shards(output, drawn_of, (info.image_size, info.image_size, info.channels))
    shards.check_room(plans)
    with owned(output):
        results, pictures = evaluate.evaluate(
            run.config, info, opened, drawer, shards, run.ema, run.step
        )
        write.write(output, results, pictures)
        write.write_tensorboard(output, results, pictures)
    print(summary(results))
    for label, name in (("picture", "drawings.png"), ("report", "report.html")):
        print(f"{label}: {output / name}")


if __name__ == "__main__":
    program.run(main)
