"""The training program as users and schedulers meet it: processes, signals, exit statuses."""

import dataclasses
import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from fsdit.config import from_dict, to_dict
from tests.conftest import experiment_file, small_disk_at
from tests.processes import (
    UNHURRIED,
    final_state,
    finish,
    losses,
    pod_losses,
    rows,
    start,
    start_pod,
    wait_for_step,
)
from tests.programs import one_line_error, run_module, start_program

pytestmark = pytest.mark.medium

STEPS = 60


@pytest.fixture
def experiment(tmp_path, small_config):
    """60 steps, logged at each, saved every 7th, evaluated at the end."""
    config = dataclasses.replace(
        small_config,
        data=dataclasses.replace(small_config.data, batch_size=8),
        train=dataclasses.replace(
            small_config.train, num_steps=STEPS, eval_interval=1000, eval_batches=2
        ),
        checkpoint=dataclasses.replace(small_config.checkpoint, interval=7),
    )
    return experiment_file(tmp_path / "experiment.py", config)


def test_killed_and_preempted_runs_end_bitwise_as_if_never_stopped(
    tmp_path, experiment, undisturbed
):
    workdir = tmp_path / "run"
    rng = np.random.default_rng(0)
    for moment in sorted(rng.choice(np.arange(9, 30), 2, replace=False)):
        process = start(experiment, workdir)
        wait_for_step(process, workdir, moment)
        process.send_signal(signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL

    process = start(experiment, workdir, UNHURRIED)
    wait_for_step(process, workdir, max(losses(workdir)) + 2)
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 75, output
    stopped = int(re.search(r"preempted at step (\d+)", output)[1])
    assert (workdir / "checkpoints" / str(stopped) / "state").is_dir()
    assert max(losses(workdir)) == stopped

    status, output = finish(start(experiment, workdir))
    assert status == 0, output
    assert f"after step {stopped}" in output

    reference = undisturbed(experiment)
    assert [r["step"] for r in rows(workdir)] == list(range(1, STEPS + 1))
    same = [k for k in rows(reference)[0] if k.startswith("train/")]
    assert len(same) > 5
    for row, expected in zip(rows(workdir), rows(reference), strict=True):
        assert {k: row.get(k) for k in same} == {k: expected.get(k) for k in same}
    assert losses(workdir) == losses(reference)
    jax.tree.map(
        np.testing.assert_array_equal, final_state(workdir, STEPS), final_state(reference, STEPS)
    )


def wait_for_start(process, workdir, count, timeout=600):
    """Returns once the run was started so often: it has restored, and its first step compiles."""
    path, deadline = workdir / "goodput.jsonl", time.monotonic() + timeout
    while not path.exists() or path.read_text().count('"event": "start"') < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run does not start"
        time.sleep(0.02)


def test_ctrl_c_saves_and_a_resumed_run_hears_a_notice_before_its_first_step(tmp_path, experiment):
    workdir, endless = tmp_path / "run", "--config.train.num_steps=100000"
    process = start(experiment, workdir, endless)
    wait_for_step(process, workdir, 9)
    process.send_signal(signal.SIGINT)
    status, output = finish(process, timeout=120)
    assert status == 75, output
    stopped = int(re.search(r"preempted at step (\d+)", output)[1])
    assert max(losses(workdir)) == stopped == max(_saved(workdir))

    # Alone: at once. A hangup is that of a terminal that is closed.
    process = start(experiment, workdir, endless)
    wait_for_start(process, workdir, 2)
    process.send_signal(signal.SIGHUP)
    status, output = finish(process, timeout=120)
    assert status == 75 and f"after step {stopped}" in output, output
    kept = max(_saved(workdir))
    assert kept == max(losses(workdir)) >= stopped


@pytest.mark.large
def test_a_pod_hears_a_notice_before_its_first_step(tmp_path, experiment):
    """All of its processes leave at the same step, though one of them hears of it."""
    workdir, endless = tmp_path / "run", "--config.train.num_steps=100000"
    status, output = finish(start(experiment, workdir, "--config.train.num_steps=9"))
    assert status == 0, output
    kept = max(_saved(workdir))
    pod = start_pod(2, experiment, workdir, endless)
    wait_for_start(pod[0], workdir, 2)
    pod[1].send_signal(signal.SIGTERM)
    results = [finish(process, timeout=120) for process in pod]
    assert [status for status, _ in results] == [75, 75], results
    left = {re.search(r"preempted (?:before|at) step (\d+)", output)[1] for _, output in results}
    assert len(left) == 1 and int(left.pop()) <= kept + 3
    assert max(_saved(workdir)) == max(losses(workdir)) >= kept


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.large)])
@pytest.mark.usefixtures("all_cores")
def test_losses_do_not_depend_on_the_number_of_processes(tmp_path, experiment, undisturbed, count):
    actual, expected = pod_losses(count, experiment, tmp_path / "run", 12), undisturbed(experiment)
    expected = {step: loss for step, loss in losses(expected).items() if step <= 12}
    assert actual.keys() == expected.keys()
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-6)
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-4)


@pytest.mark.large
@pytest.mark.usefixtures("all_cores")
def test_a_run_moves_from_two_processes_to_one_to_four(tmp_path, experiment, undisturbed):
    workdir = tmp_path / "run"
    pod = start_pod(2, experiment, workdir, UNHURRIED)
    wait_for_step(pod[0], workdir, 4)
    pod[1].send_signal(signal.SIGTERM)  # one of them hears of it, both leave
    results = [finish(p) for p in pod]
    assert [status for status, _ in results] == [75, 75], results
    stopped = {re.search(r"preempted at step (\d+)", output)[1] for _, output in results}
    assert len(stopped) == 1

    process = start(experiment, workdir, UNHURRIED, devices=8)
    wait_for_step(process, workdir, int(stopped.pop()) + 2)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 75

    flags = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
    results = [finish(p) for p in start_pod(4, experiment, workdir, *flags)]
    assert [status for status, _ in results] == [0] * 4, results
    actual, expected = losses(workdir), losses(undisturbed(experiment))
    assert actual.keys() == expected.keys()
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-4)


def test_a_finished_run_leaves_what_the_contract_promises(experiment, undisturbed):
    workdir = undisturbed(experiment)
    config = from_dict(json.loads((workdir / "config.json").read_text()))
    assert config.train.num_steps == STEPS
    assert (workdir / "checkpoints" / str(STEPS) / "meta").is_dir()
    with Image.open(workdir / "samples" / f"{STEPS}.png") as picture:
        assert picture.width > 5 * 24 and len(np.unique(np.asarray(picture))) > 3

    status, output = finish(start(experiment, workdir))
    assert status == 0 and "is finished" in output
    assert len(rows(workdir)) == STEPS


SCALARS = {
    "train/loss", "train/loss_average", "train/grad_norm", "train/param_norm",
    "train/learning_rate", "train/nonfinite_steps", "timing/step_seconds",
    "timing/images_per_second", "timing/data_wait_seconds", "timing/checkpoint_stall_seconds",
    "timing/evaluation_seconds", "timing/compile_seconds", "timing/model_flops_per_second",
    "timing/start_to_first_step_seconds", "timing/start_compile_seconds", "goodput/step",
    "goodput/compile", "goodput/down", "goodput/lost_steps", "goodput/starts", "val/loss",
    "val/gap", "train_ema/loss", "condition/mean", "condition/norm", "condition/spread",
    "condition/cosine_within", "condition/cosine_between", "conditioning/time_norm",
    "conditioning/condition_norm", "layers/activation_mean_abs/layer00",
    "layers/activation_rms/layer01", "layers/modulation_norm/layer00",
    "attention/self_attention_entropy/layer01_head01",
    "attention/cross_attention_entropy/layer00_head00",
}  # fmt: skip


def test_tensorboard_reads_every_tag(experiment, undisturbed):
    workdir = undisturbed(experiment)
    events = EventAccumulator(str(workdir / "tensorboard"), {"tensors": 0, "images": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    bins = {f"{split}/loss_t{i}" for split in ("train", "val") for i in range(3, 7)}
    expected = SCALARS | bins | {"condition/pooled", "samples/seen", "samples/unseen"}
    assert expected <= tags, expected - tags
    logged = {e.step: float(make_ndarray(e.tensor_proto)) for e in events.Tensors("train/loss")}
    assert logged == {s: pytest.approx(v, rel=1e-6) for s, v in losses(workdir).items()}


def test_a_nonfinite_run_stops_and_keeps_its_checkpoint(tmp_path, experiment):
    flags = ("--config.optimizer.peak_learning_rate=1e38", "--config.checkpoint.interval=2")
    status, output = finish(start(experiment, tmp_path / "run", *flags))
    assert status == 1
    assert output.splitlines()[-1].startswith("error: step") and "10 steps in a row" in output
    state = final_state(tmp_path / "run", max(_saved(tmp_path / "run")))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["params"]))


def _saved(workdir):
    return [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]


@pytest.fixture
def small_disk(tmp_path):
    with small_disk_at(tmp_path / "disk", size="6m") as disk:
        yield disk


def test_a_full_disk_stops_the_run_with_one_line_and_loses_nothing(
    tmp_path, experiment, small_disk, undisturbed
):
    workdir = small_disk / "run"
    # A real start: only what this process starts sees the disk that it has mounted.
    flags = ("--config.checkpoint.keep_last=100", "--config.checkpoint.interval=2")
    paths = (f"--config={experiment}", f"--workdir={workdir}")
    status, output = finish(start_program("fsdit.main", *paths, *flags, real=True))
    assert status == 1, output
    assert "Traceback" not in output and "  File " not in output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(workdir) in errors[0], output
    saved = _saved(workdir)
    assert saved

    roomy = tmp_path / "roomy"
    shutil.copytree(workdir, roomy)
    status, output = finish(start(experiment, roomy))
    assert status == 0, output
    assert f"after step {max(saved)}" in output
    assert losses(roomy) == losses(undisturbed(experiment))


WRONG = {
    "unknown field": (["--config.data.bach_size=3"], ["data.bach_size", "data.batch_size"]),
    "wrong type": (["--config.data.batch_size=many"], ["config.data.batch_size", "integer"]),
    "wrong choice": (["--config.sampling.solver=rk45"], ["config.sampling.solver", "heun"]),
    "no dataset": (["--config.data.dataset_dir=/nowhere"], ["/nowhere", "data_prep"]),
    "K too large": (["--config.data.shots=14"], ["shots=14", "12 images", "config.data.shots"]),
    "wrong K": (["--config.data.source=file", "--config.data.shots=3"], ["5 supports"]),
    "patch": (["--config.model.patch_size=5"], ["config.model.patch_size=5", "24"]),
    "heads": (["--config.model.num_heads=5"], ["config.model.num_heads=5"]),
    "batch": (["--config.data.batch_size=6"], ["config.data.batch_size=6", "4 devices"]),
    "mesh": (["--config.mesh.data=3"], ["config.mesh.data=3", "4 devices"]),
    "no drawings": (
        ["--config.train.few_shot_samples=0"],
        ["config.train.few_shot_samples", "least 1"],
    ),
    "judged before": (
        ["--config.train.few_shot_interval=-1"],
        ["config.train.few_shot_interval", "negat"],
    ),
    "few drawings": (
        ["--config.train.few_shot_interval=5", "--config.train.few_shot_samples=1"],
        ["config.train.few_shot_samples makes 1", "raise config.train.few_shot_samples"],
    ),
    "no judge": (
        ["--config.train.few_shot_interval=5", "--config.evaluation.critic=/nowhere"],
        ["/nowhere"],
    ),
    "missing value": (["--config.seed"], ["--config.seed=VALUE"]),
    "unknown flag": (["--wrokdir=x"], ["wrokdir"]),
    "half a pod": (["--num_processes=2"], ["--coordinator_address", "--process_id"]),
}


@pytest.mark.parametrize(("flags", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path, experiment, flags, words):
    workdir = tmp_path / "run"
    result = run_module(
        "fsdit.main", f"--config={experiment}", f"--workdir={workdir}", *flags, devices=4
    )
    one_line_error(result, *words)
    assert not workdir.exists()


def test_a_missing_experiment_file_is_named(tmp_path):
    result = run_module("fsdit.main", "--config=experiments/none.py", f"--workdir={tmp_path}/w")
    one_line_error(result, "experiments/none.py")


def test_a_dataset_without_episodes_is_named(tmp_path, experiment, glyphs):
    copy = tmp_path / "glyphs"
    shutil.copytree(glyphs, copy)
    manifest = copy / "train" / "manifest.json"
    entries = json.loads(manifest.read_text())
    kept = {name: entry for name, entry in entries.items() if name.startswith("images")}
    manifest.write_text(json.dumps(kept))
    flags = (f"--config.data.dataset_dir={copy}", "--config.data.source=file")
    result = run_module("fsdit.main", f"--config={experiment}", f"--workdir={tmp_path}/w", *flags)
    one_line_error(result, str(copy / "train"), "episodes")


def test_a_dataset_without_validation_classes_trains_and_says_so(
    tmp_path, experiment, glyphs, small_config
):
    dataset = tmp_path / "dataset"
    shutil.copytree(glyphs, dataset)
    shutil.rmtree(dataset / "val")
    description = json.loads((dataset / "dataset.json").read_text())
    del description["splits"]["val"], description["sha256"]
    (dataset / "dataset.json").write_text(json.dumps(description))
    flags = [f"--config.data.dataset_dir={dataset}", "--config.train.num_steps=2"]
    flags += ["--config.seed=7", "--config.mesh.data=1", "--config.mesh.fsdp=-1"]
    flags += ["--config.train.overfit_batches=1"]
    judging = [f"--config={experiment}", f"--workdir={tmp_path}/none", *flags]
    result = run_module("fsdit.main", *judging, "--config.train.few_shot_interval=1")
    one_line_error(result, "config.train.few_shot_interval=1", f"{dataset} has no val split")
    assert not (tmp_path / "none").exists()

    status, output = finish(start(experiment, tmp_path / "run", *flags))
    assert status == 0, output
    assert "no val split" in output
    assert rows(tmp_path / "run")[-1]["train_ema/loss"] > 0
    assert not any(tag.startswith("val/") for row in rows(tmp_path / "run") for tag in row)
    assert len(rows(tmp_path / "run")) == 2
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["train"]["num_steps"], saved["seed"]) == (2, 7)
    assert saved.keys() == to_dict(small_config).keys()


def test_a_damaged_shard_stops_the_run_and_names_the_record(tmp_path, experiment, glyphs):
    copy = tmp_path / "glyphs"
    shutil.copytree(glyphs, copy)
    shard = next((copy / "train").glob("images-*"))
    data = bytearray(shard.read_bytes())
    for i in range(200_000, len(data), 3_000):  # many records, so that some batch meets one
        data[i] ^= 0xFF
    shard.write_bytes(data)
    result = run_module(
        "fsdit.main",
        f"--config={experiment}",
        f"--workdir={tmp_path}/w",
        f"--config.data.dataset_dir={copy}",
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and str(shard) in last and "record" in last


def test_a_workdir_of_another_configuration_is_refused(experiment, undisturbed):
    workdir = undisturbed(experiment)
    before = sorted(p for p in workdir.rglob("*") if p.is_file())
    result = run_module(
        "fsdit.main",
        f"--config={experiment}",
        f"--workdir={workdir}",
        "--config.model.hidden_size=64",
    )
    one_line_error(result, "config.model.hidden_size is 64", "has 32")
    assert sorted(p for p in workdir.rglob("*") if p.is_file()) == before


def test_a_run_goes_on_from_another_folder_with_the_settings_that_it_holds(
    tmp_path, glyphs, small_config
):
    data = dataclasses.replace(small_config.data, dataset_dir=glyphs.name)  # relative
    train = dataclasses.replace(small_config.train, num_steps=2, eval_interval=1000)
    config = dataclasses.replace(small_config, name="", data=data, train=train)
    experiment, workdir = experiment_file(tmp_path / "experiment.py", config), tmp_path / "run"
    first = run_module(
        "fsdit.main", f"--config={experiment}", f"--workdir={workdir}", cwd=glyphs.parent
    )
    assert first.returncode == 0, first.stderr
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["data"]["dataset_dir"] == str(glyphs) and saved["name"] == glyphs.name

    more = run_module(
        "fsdit.main", f"--workdir={workdir}", "--config.train.num_steps=4", cwd=tmp_path
    )
    assert more.returncode == 0 and "after step 2" in more.stdout, more.stderr
    assert json.loads((workdir / "config.json").read_text())["optimizer"] == saved["optimizer"]

    flags = (f"--config={workdir}/config.json", f"--workdir={workdir}")
    again = run_module("fsdit.main", *flags, cwd=tmp_path)
    assert again.returncode == 0 and "is finished" in again.stdout, again.stderr
    assert [row["step"] for row in rows(workdir)] == [1, 2, 3, 4]

    # As it was recorded before paths were absolute.
    moved = ("--config.data.dataset_dir=glyphs", f"--output={tmp_path}/grid.png", "--episode=0")
    lost = run_module("fsdit.sample", f"--workdir={workdir}", *moved, cwd=tmp_path)
    one_line_error(lost, f"looked for from {tmp_path}", "--config.data.dataset_dir=DIR")
