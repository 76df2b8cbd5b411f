"""Trains, and resumes whatever the workdir holds.

    python -m fsdit.main --config=experiments/glyphs.py --workdir=runs/glyphs

Every setting of the experiment is a flag, such as --config.data.batch_size=32. Without --config
a run resumes with the settings in its workdir. Exit status: 0 finished, 75 preempted and saved
(start the same command again), 1 error. SIGTERM, Ctrl-C and a closed terminal preempt the run;
a second Ctrl-C ends it at once, unsaved.
"""

from fsdit.parallel import preemption, workers

# Before slow imports, since a signal may come at any moment. Input workers, which
# multiprocessing starts, import this module as "__mp_main__".
if __name__ == "__main__":
    preemption.listen()
elif __name__ == "__mp_main__":
    workers.ignore_signals()

from absl import flags

from fsdit import program, storage

_WORKDIR = program.define_path("workdir", None, "Directory of the run.", required=True, folder=True)
_CONFIG = program.define_config(_WORKDIR)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout_seconds", 100, "Silence after which a process is lost.", lower_bound=1
)
_START_OVER = flags.DEFINE_bool(
    "start_over",
    False,
    "Where the workdir holds checkpoints and none is valid, set them aside and begin at step 0.",
)


def main(argv: list[str]) -> int:
    del argv
    config = _CONFIG()
    # Imported here, because input workers import this module too and do not need these.
    from fsdit.parallel import processes
    from fsdit.training import loop

    workdir = storage.place(_WORKDIR.value)
    inputs = loop.open_inputs(config, workdir, start_over=_START_OVER.value)
    processes.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _HEARTBEAT.value)
    status = loop.train(config, workdir, inputs, start_over=_START_OVER.value)
    processes.stop()
    return status


if __name__ == "__main__":
    program.run(main)
