"""The training loop: dispatches steps, hands their metrics on, evaluates, saves and resumes."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from fsdit import storage
from fsdit.config import Config, to_dict
from fsdit.data import pipeline, run_dataset
from fsdit.data.layout import DatasetInfo, dataset_fingerprint, write_json
from fsdit.data.records import num_supports
from fsdit.data.run_dataset import facts_of, read_run_dataset
from fsdit.errors import EXIT_PREEMPTED, NonFiniteError
from fsdit.evaluation.in_training import (
    FewShotEvaluator,
    FewShotInputs,
    few_shot_row,
    open_few_shot,
)
from fsdit.events import hush_tracebacks
from fsdit.features.batches import Feed
from fsdit.features.frozen import Frozen, open_networks
from fsdit.features.resident import ResidentFeatures
from fsdit.features.staging import with_local_copies
from fsdit.models.spec import ModelSpec
from fsdit.parallel import preemption, processes, sharding
from fsdit.parallel.chips import find_chip
from fsdit.parallel.compilation import use_cache
from fsdit.program.ownership import owned
from fsdit.training import flops, optimizer
from fsdit.training import state as train_state
from fsdit.training.alignment import with_projection
from fsdit.training.checkpoints import listing, selection, store
from fsdit.training.checkpoints.selection import SELECTED_BY
from fsdit.training.checkpoints.start import open_start, read_start
from fsdit.training.checkpoints.store import Checkpoints, Restored
from fsdit.training.checkpoints.workdir import check_workdir
from fsdit.training.deadline import TIME_LIMIT, Deadline
from fsdit.training.diagnostics import SEEN, UNSEEN, Diagnostics
from fsdit.training.objective import StepBatch
from fsdit.training.step import compile_train_step
from fsdit.training.telemetry.clock import Clock
from fsdit.training.telemetry.logs import overview
from fsdit.training.telemetry.telemetry import Telemetry

# What a resumed run continues, by name in the workdir; the other processes of a pod need the last.
_CONTINUED = ("metrics.jsonl", "goodput.jsonl", "tensorboard/", "compilation_cache/")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The networks and data of a run, opened and checked; no device is used yet.

    config: the configuration, with local copies of what it reads from buckets.
    info: the dataset. training: reads training episode i.
    evaluation: fixed validation episodes of each split.
    few_shot: what the few-shot metrics in training need, or None where they are off.
    identity: digests of the dataset and of the frozen weights, by name. changes: a line for
    each changed setting by which a resumed run computes its steps differently.
    """

    config: Config
    spec: ModelSpec
    frozen: Frozen
    info: DatasetInfo
    training: pipeline.ReadExample
    evaluation: dict[str, pipeline.FixedExamples]
    few_shot: FewShotInputs | None
    identity: dict[str, str]
    changes: list[str]


def open_inputs(config: Config, workdir: storage.AnyPath, *, start_over: bool = False) -> Inputs:
    """Opens and checks the inputs of a run, before any device work.

    start_over: whether a workdir whose checkpoints are all damaged may begin again. Raises
    ConfigError, DataError or CheckpointError.
    """
    check_workdir(workdir)
    read = with_local_copies(config, splits=(SEEN, UNSEEN))
    info = read_run_dataset(read)
    training = pipeline.training_examples(read)
    training(0)  # raises DataError where the first example cannot be read
    watched = [split for split in (SEEN, UNSEEN) if split in info.splits]
    few_shot = open_few_shot(read, info, UNSEEN) if config.train.few_shot_interval else None
    evaluation = {split: pipeline.evaluation_examples(read, split) for split in watched}
    spec, frozen = open_networks(read, info)
    spec = with_projection(spec, config)
    spec.check_training(num_supports(config.data.shots))
    digest = dataset_fingerprint(read.data.dataset_dir, run_dataset.feature_files(config))
    identity = {"dataset": digest, **frozen.weights}
    changes = listing.check_resumable(workdir, config, identity, start_over=start_over)
    if config.train.init_from and listing.saved_meta(workdir) is None:
        open_start(config.train.init_from)  # raises where there is nothing to start from
    return Inputs(read, spec, frozen, info, training, evaluation, few_shot, identity, changes)


def train(
    config: Config,
    workdir: storage.AnyPath,
    inputs: Inputs,
    *,
    start_over: bool = False,
) -> int:
    """Trains to `config.train.num_steps`, resuming what the workdir holds.

    start_over: begin at step 0 where the workdir holds checkpoints and none is valid.
    Returns the exit status: 0 when the last step is done, EXIT_PREEMPTED after a preemption.
    `processes.start` must have been called. Raises FsditError, among other reasons where
    another run writes to the workdir.
    """
    hush_tracebacks()
    # The main process owns the workdir for its whole pod; the others wait until it does.
    with owned(workdir) if processes.is_main_process() else contextlib.nullcontext():
        processes.wait_for_all("owned")
        continued = _CONTINUED if processes.is_main_process() else _CONTINUED[-1:]
        with storage.mirrored(
            workdir, jax.process_index(), lambda name: name.startswith(continued)
        ) as mirror:
            return _train(config, workdir, mirror, inputs, start_over)


def _train(
    config: Config,
    workdir: storage.AnyPath,
    mirror: storage.Mirror,
    inputs: Inputs,
    start_over: bool,
) -> int:
    clock, spec, read = Clock(), inputs.spec, inputs.config
    mesh = sharding.make_mesh(config)
    use_cache(config.train.compilation_cache, mirror.folder)
    feed = Feed(read, mesh, inputs.frozen, resident=_resident(read, mesh))
    tx = optimizer.transformation(config.optimizer)
    template = train_state.abstract(spec, tx, mesh, len(config.train.all_decays))
    with clock.part("restore"):
        restored = store.restore(workdir, template, set_aside=True, start_over=start_over)
    if restored is None:
        given = read_start(config, template.params, facts_of(inputs.info), inputs.identity)
        state = train_state.init(spec, tx, config.seed, template, given)
        restored = Restored(
            step=0, state=state, next_index=0, running={}, fingerprint={}, best=None
        )
    _announce(config, workdir, mesh, restored, inputs)
    if restored.step >= config.train.num_steps:
        return 0

    mirror.folder.mkdir(parents=True, exist_ok=True)
    if processes.is_main_process():
        write_json(mirror.folder / "config.json", to_dict(config))
    telemetry = Telemetry(
        mirror.folder,
        config,
        restored.step,
        restored.running,
        clock,
        lambda batch: flops.of_step(spec, config, template.params, batch),
        feed.counters,
        mirror.publish if mirror.remote else None,
    )
    telemetry.texts(restored.step, overview.pages(config, inputs.info, template.params))
    processes.wait_for_all("writers")  # a first import of TensorBoard's writer can take a minute
    selected = selection.resumed(workdir, config, restored.step, restored.best)
    checkpoints = Checkpoints(
        workdir, config, inputs.identity, mesh, restored.step, selected, facts_of(inputs.info)
    )
    few_shot = None
    if inputs.few_shot:
        few_shot = FewShotEvaluator(read, spec, feed, mesh, inputs.few_shot)
    diagnostics = Diagnostics(spec, read, mesh, feed, mirror.folder, inputs.evaluation)
    batches = feed.batches(
        inputs.training,
        config.data.batch_size,
        config.train.num_steps - restored.step,
        start=restored.next_index,
        workers=config.data.workers,
        overfit_batches=config.train.overfit_batches,
    )
    step_fn = compile_train_step(spec, config, tx, mesh, template)
    try:
        with jax.transfer_guard("disallow"), clock.part("step"):
            finished = _run(
                config,
                restored,
                batches,
                step_fn,
                telemetry,
                diagnostics,
                few_shot,
                checkpoints,
                Deadline(config.train.stop_after_minutes, clock.elapsed),
            )
    except NonFiniteError:
        checkpoints.finish()  # the last checkpoint may still be on its way to disk
        raise
    finally:
        batches.close()
    telemetry.close()
    with clock.part("checkpoint_stall"):
        checkpoints.finish()
    telemetry.conclude()
    best = selected.best
    if finished and best and processes.is_main_process():
        ema = f", EMA decay {best.ema}" if best.ema is not None else ""
        print(f"best by {SELECTED_BY}: step {best.step}, {best.value:.6g}{ema}", flush=True)
    return 0 if finished else EXIT_PREEMPTED


def _run(
    config: Config,
    restored: Restored,
    batches: Iterator[StepBatch],
    step_fn,
    telemetry: Telemetry,
    diagnostics: Diagnostics,
    few_shot: FewShotEvaluator | None,
    checkpoints: Checkpoints,
    deadline: Deadline,
) -> bool:
    """Runs steps until the last one or a preemption; returns whether the last one was reached."""
    state, next_index, last = restored.state, restored.next_index, config.train.num_steps
    if processes.preemption_reached():
        print(f"preempted before step {restored.step + 1}: leaving", flush=True)
        return False
    for step in range(restored.step + 1, last + 1):
        with telemetry.dispatching(step):
            with telemetry.timed("data_wait"):
                batch = next(batches)
            state, metrics = step_fn(state, batch)
        preemption.leave_at_once(False)
        next_index += config.data.batch_size
        telemetry.step(step, batch, metrics)

        found, scores = {}, []
        if step % config.train.eval_interval == 0 or step == last:
            with telemetry.evaluating():
                found |= diagnostics.run(state.ema, step, telemetry)
        if few_shot and (step % config.train.few_shot_interval == 0 or step == last):
            # The metrics are computed on the host, so the loop's transfer guard is lifted.
            with telemetry.evaluating(), jax.transfer_guard("allow"):
                scores = [few_shot.run(average) for average in state.averages]
            found |= few_shot_row(config, scores)
        if found:
            telemetry.read(found)
        is_best = False
        if scores:
            values = [each[SELECTED_BY] for each in scores]
            is_best = checkpoints.selection.consider(step, *values)

        checkpoints.check()
        if deadline.reached(checkpoints.longest_save) and not preemption.received():
            preemption.announce(f"{TIME_LIMIT}={config.train.stop_after_minutes:g} minutes")
        preempted = processes.preemption_reached()
        if step % config.checkpoint.interval == 0 or step == last or preempted or is_best:
            with telemetry.saving():
                checkpoints.save(state, step, next_index, telemetry.running)
        if preempted and step < last:
            print(f"preempted at step {step}: saving, then leaving", flush=True)
            return False
    return True


def _resident(config: Config, mesh: Mesh) -> ResidentFeatures | None:
    """Loads the precomputed features onto the devices, if the configuration asks for it."""
    if config.features.location == "host":
        return None
    if processes.is_main_process():
        print("loading what is precomputed onto the devices", flush=True)
    return ResidentFeatures(config, mesh)


def _announce(
    config: Config, workdir: storage.AnyPath, mesh: Mesh, restored: Restored, inputs: Inputs
) -> None:
    """Prints the model, the devices, and what the run starts or resumes from."""
    if not processes.is_main_process():
        return
    print(overview.model_line(config, inputs.spec, restored.state.params))
    kind = jax.devices()[0].device_kind
    print(
        f"{jax.device_count()} {kind} devices, mesh {dict(mesh.shape)}, "
        f"{jax.process_count()} processes; global batch {config.data.batch_size}"
    )
    if find_chip(kind) is None:
        print(f"no peak of {kind} devices is known to fsdit/parallel/chips.py: no timing/mfu")
    if UNSEEN not in inputs.evaluation:
        print(f"the dataset has no {UNSEEN} split: no validation on unseen classes")
    if restored.step >= config.train.num_steps:
        print(f"{workdir} is finished: step {restored.step} of {config.train.num_steps}")
    elif restored.step:
        print(f"resuming {workdir} after step {restored.step}")
        print("".join(f"{change}\n" for change in inputs.changes), end="")
    print(f"TensorBoard: tensorboard --logdir={workdir / 'tensorboard'}", flush=True)
