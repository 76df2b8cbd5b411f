"""A pod that is killed, preempted, stopped, damaged and starved of disk, and what it loses.

    python -m experiments.benchmarks.lifecycle.endurance --dataset_dir=datasets/glyphs \\
      --output_dir=runs/endurance --disturbances=50 --seed=0

A small model trains on the glyphs in a pod of two or four processes, kept running by the
local launcher. Disturbances come in every phase of a start, a first one or a resumed one,
and at random moments later, all from the seed; the number of processes is drawn anew at
each start. The run passes if its losses are those
of an undisturbed one to the bit, at every step, and no disturbance cost more than the steps
since the newest sound checkpoint. The pod has four devices in either case, so that the same
sums are made in the same order. (Three processes would share them unequally, which Orbax refuses.)

Writes table.md and results.json to the output directory. Exit status 0: passed; 1: failed.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from experiments.benchmarks.lifecycle.disturbances import KINDS, Disturber, Record, plan, rows
from experiments.benchmarks.lifecycle.endurance_report import Outcome, failures, write
from experiments.benchmarks.lifecycle.small_disk import small_disk
from fsdit import program
from fsdit.errors import EXIT_ERROR, ConfigError
from fsdit.launch.decision import Patience
from fsdit.launch.pod import Pod
from fsdit.launch.supervise import Notice, listening, newest_checkpoint, supervise

_DATASET = program.define_path("dataset_dir", "datasets/glyphs", "The glyph dataset.")
_OUTPUT = program.define_path("output_dir", None, "New directory for results.", required=True)
_COUNT = flags.DEFINE_integer("disturbances", 50, "How many.", lower_bound=len(KINDS))
_SEED = flags.DEFINE_integer("seed", 0, "Of all that is random.")

DEVICES = 4
INTERVAL = 10  # steps between checkpoints
EVALUATION = 15  # steps between evaluations
HEARTBEAT = 20  # seconds after which a stopped process is lost
STEPS_A_DISTURBANCE = 20
DISK = "200m"
PATIENCE = Patience(restarts=20, first_pause=0.1, longest_pause=1.0)


def command(workdir: Path, num_steps: int) -> list[str]:
    """The glyph task in a model so small that a run is mostly starts."""
    settings = {
        "data.dataset_dir": Path(_DATASET.value).absolute(),
        "data.batch_size": 2 * DEVICES,
        "model.hidden_size": 32,
        "model.depth": 1,
        "model.scan_layers": False,
        "model.cross_attention": "none",
        "model.num_heads": 2,
        "model.patch_size": 6,
        "model.encoder.hidden_size": 32,
        "model.encoder.num_heads": 2,
        "sampling.num_steps": 2,
        "train.num_steps": num_steps,
        "train.log_interval": 1,
        "train.eval_interval": EVALUATION,
        "train.eval_batches": 1,
        "checkpoint.interval": INTERVAL,
        "checkpoint.keep_last": 4,
    }
    return [
        *(sys.executable, "-m", "fsdit.main", "--config=experiments/glyphs.py"),
        *(f"--workdir={workdir}", f"--heartbeat_timeout_seconds={HEARTBEAT}"),
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]


def environment(processes: int) -> dict[str, str]:
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}",
        # On the CPU a cache serves process 0 alone, which then waits for the compilers of the
        # others in its first collective: for 30 seconds, and no longer.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        # Nothing is timed here but starts, which are mostly compiling.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }


def main(argv: list[str]) -> int:
    del argv
    output = Path(_OUTPUT.value).absolute()
    if output.exists():
        raise ConfigError(f"--output_dir={output} is there already: name a new one")
    (output / "log").mkdir(parents=True)
    num_steps = STEPS_A_DISTURBANCE * _COUNT.value
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder) / "disk"
        with small_disk(room, DISK) as mounted, listening() as notice:
            workdir, status, records = disturbed(output, room, mounted, num_steps, notice)
            if status == 0:
                status = undisturbed(output, num_steps, notice)
            ours = losses(workdir)
    expected = losses(output / "undisturbed")
    against = failures(
        records,
        ours,
        expected,
        finished=status == 0,
        asked=_COUNT.value,
        interval=INTERVAL,
    )
    notes = () if mounted else ("No full disk: mounting a small file system needs root.",)
    seconds = time.monotonic() - started
    return write(output, Outcome(records, ours, expected, against, seconds, _SEED.value, notes))


def disturbed(
    output: Path, room: Path, mounted: bool, num_steps: int, notice: Notice
) -> tuple[Path, int, list[Record]]:
    """Trains under all disturbances: the workdir, the launcher's status, what was done."""
    rng = random.Random(_SEED.value)
    workdir = room / "run"
    kinds = [kind for kind in KINDS if mounted or kind != "full disk"]
    planned = plan(kinds, _COUNT.value, INTERVAL, rng)
    disturber = Disturber(workdir, planned, rng, room / "filler", INTERVAL, EVALUATION)
    with (output / "log" / "disturbed.txt").open("w", buffering=1) as log:

        def start() -> Pod:
            processes = rng.choice((2, DEVICES))
            log.write(f"-- {processes} processes\n")

            def hear(number: int, line: str) -> None:
                log.write(f"{time.monotonic():.2f} [{number}] {line}\n")
                disturber.hear(number, line)

            disturber.before_start(processes)
            return Pod(command(workdir, num_steps), processes, environment(processes), hear)

        while True:
            status = supervise(
                start,
                progress=lambda: newest_checkpoint(workdir),
                notice=notice,
                patience=PATIENCE,
                tick=disturber.tick,
                tick_seconds=0.05,
            )
            # A full disk is the user's error: it is his to make room, and start again.
            if status != EXIT_ERROR or not disturber.make_room():
                return workdir, status, disturber.records


def undisturbed(output: Path, num_steps: int, notice: Notice) -> int:
    with (output / "log" / "undisturbed.txt").open("w", buffering=1) as log:
        return supervise(
            start=lambda: Pod(
                command(output / "undisturbed", num_steps),
                2,
                environment(2),
                lambda number, line: log.write(f"[{number}] {line}\n"),
            ),
            progress=lambda: newest_checkpoint(output / "undisturbed"),
            notice=notice,
            patience=Patience(restarts=0),
        )


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of each line of a log, in its order."""
    return [(row["step"], row["train/loss"]) for row in rows(folder)]


if __name__ == "__main__":
    program.run(main)
