"""Measures what a run loses when its pod is killed and stopped and its files are damaged.

    python -m experiments.benchmarks.lifecycle.endurance --dataset_dir=datasets/glyphs \\
      --output_dir=runs/endurance --disturbances=50 --seed=0

A small model trains on the glyphs in a pod of two or four processes, under the local launcher.
Disturbances come in every phase of first and of resumed starts, and at random later moments.
Moments and the number of processes of each start are random by the seed.

The run passes if the loss of every step equals that of an undisturbed run in every bit, and if
no disturbance lost more than the steps since the newest undamaged checkpoint. The pod always
has four devices, so that sums are made in the same order. (Three processes would hold unequal
numbers of them, which Orbax refuses.)

Writes table.md and results.json to the output directory. Exit status 0: passed; 1: failed.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from experiments.benchmarks.lifecycle.disturbances import KINDS, Disturber, Record, rows, schedule
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
_SEED = flags.DEFINE_integer("seed", 0, "Seed of everything that is random.")

DEVICES = 4
INTERVAL = 10  # steps between checkpoints
EVALUATION = 15  # steps between evaluations
HEARTBEAT = 20  # seconds after which a stopped process counts as lost
STEPS_A_DISTURBANCE = 20
DISK = "200m"
PATIENCE = Patience(restarts=20, first_pause=0.1, longest_pause=1.0)


def command(workdir: Path, num_steps: int) -> list[str]:
    """The command that trains the glyph task, with a model so small that starts take most time."""
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
    """Variables for each of so many processes, which share DEVICES devices."""
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}",
        # On the CPU only process 0 finds cached programs. It would wait for the others, which
        # compile, in its first collective, which gives up after 30 seconds.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        # Starts are mostly compiling, and nothing else is timed here.
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
    """Trains under all disturbances: (workdir, exit status of the launcher, records)."""
    rng = random.Random(_SEED.value)
    workdir = room / "run"
    kinds = [kind for kind in KINDS if mounted or kind != "full disk"]
    planned = schedule(kinds, _COUNT.value, INTERVAL, rng)
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
            # A full disk is a user's error: the user makes room and starts again.
            if status != EXIT_ERROR or not disturber.make_room():
                return workdir, status, disturber.records


def undisturbed(output: Path, num_steps: int, notice: Notice) -> int:
    """Trains the run to compare with; returns the exit status of the launcher."""
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
    """(step, loss) of each line of a log, in order."""
    return [(row["step"], row["train/loss"]) for row in rows(folder)]


if __name__ == "__main__":
    program.run(main)
