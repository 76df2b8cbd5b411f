"""The training program as its users start it: the files it writes, the input it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from fsdit.config import from_dict, to_dict
from fsdit.training.checkpoints import listing
from fsdit.training.telemetry.logs.names import shown
from tests.conftest import one_block
from tests.processes import (
    STEPS,
    final_state,
    finish,
    long_run,
    losses,
    rows,
    start,
)
from tests.programs import one_line_error, run_module

pytestmark = pytest.mark.medium


@pytest.fixture
def experiment(tmp_path, small_config):
    return long_run(tmp_path, one_block(small_config))


@pytest.fixture
def every_part(tmp_path, small_config):
    """An experiment whose model has every part, and so makes every tag of TensorBoard."""
    return long_run(tmp_path, small_config)


def test_a_finished_run_leaves_its_files_and_is_not_trained_again(every_part, undisturbed):
    workdir = undisturbed(every_part)
    config = from_dict(json.loads((workdir / "config.json").read_text()))
    assert config.train.num_steps == STEPS
    assert (workdir / "checkpoints" / str(STEPS) / "meta").is_dir()
    with Image.open(workdir / "samples" / f"{STEPS}.png") as picture:
        assert picture.width > 5 * 24 and len(np.unique(np.asarray(picture))) > 3

    status, output = finish(start(every_part, workdir))
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
    *(f"{split}/loss_t{i}" for split in ("train", "val") for i in range(3, 7)),
}  # fmt: skip
# In metrics.jsonl there is one of each head; TensorBoard has a picture and histograms of all.
HEADS = {
    "attention/self_attention_entropy/layer01_head01",
    "attention/cross_attention_entropy/layer00_head00",
}
OTHERS = {
    "8 conditioning/pooled", "9 layers/self_attention_entropy", "9 layers/cross_attention_entropy",
    "9 layers/attention entropy", "3 samples/classes never seen", "3 samples/classes of training",
    "configuration", "data", "model",
}  # fmt: skip


def test_the_log_keeps_its_names_and_tensorboard_sorts_by_importance(every_part, undisturbed):
    workdir = undisturbed(every_part)
    logged = {name for row in rows(workdir) for name in row}
    assert logged >= SCALARS | HEADS, (SCALARS | HEADS) - logged
    events = EventAccumulator(str(workdir / "tensorboard"), {"tensors": 0, "images": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    expected = {shown(name) for name in SCALARS} | OTHERS
    assert expected <= tags, expected - tags
    assert not any("head0" in tag for tag in tags)
    sections = {tag.partition("/")[0] for tag in tags if "/" in tag and not tag.startswith("_")}
    assert all(section[0].isdecimal() for section in sections), sections
    shown_losses = {
        event.step: float(make_ndarray(event.tensor_proto))
        for event in events.Tensors("1 loss/train")
    }
    assert shown_losses == {s: pytest.approx(v, rel=1e-6) for s, v in losses(workdir).items()}


def test_a_nonfinite_run_stops_and_keeps_its_checkpoint(tmp_path, experiment):
    flags = ("--config.optimizer.peak_learning_rate=1e38", "--config.checkpoint.interval=2")
    status, output = finish(start(experiment, tmp_path / "run", *flags))
    assert status == 1
    assert output.splitlines()[-1].startswith("error: step") and "10 steps in a row" in output
    state = final_state(tmp_path / "run", max(listing.steps(tmp_path / "run")))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["params"]))


CUDNN = ["--config.model.attention=cudnn", "--config.model.dtype=bfloat16"]
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
    "attention": (CUDNN, ["config.model.attention=cudnn", "this device is cpu"]),
    "odd tokens": (
        [*CUDNN, "--config.model.cross_attention=cls"],
        ["17 tokens of the DiT with its cls", "config.model.attention=plain"],
    ),
    "no samples": (
        ["--config.train.few_shot_samples=0"],
        ["config.train.few_shot_samples", "least 1"],
    ),
    "negative interval": (
        ["--config.train.few_shot_interval=-1"],
        ["config.train.few_shot_interval", "negat"],
    ),
    "few samples": (
        ["--config.train.few_shot_interval=5", "--config.train.few_shot_samples=1"],
        ["config.train.few_shot_samples makes 1", "raise config.train.few_shot_samples"],
    ),
    "no critic": (
        ["--config.train.few_shot_interval=5", "--config.evaluation.critic=/nowhere"],
        ["/nowhere"],
    ),
    "missing value": (["--config.seed"], ["--config.seed=VALUE"]),
    "unknown flag": (["--wrokdir=x"], ["wrokdir"]),
    "half a pod": (["--num_processes=2"], ["--coordinator_address", "--process_id"]),
}


@pytest.mark.parametrize(("flags", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_reported_in_one_line_and_leaves_nothing(tmp_path, experiment, flags, words):
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
    few_shot = [f"--config={experiment}", f"--workdir={tmp_path}/none", *flags]
    result = run_module("fsdit.main", *few_shot, "--config.train.few_shot_interval=1")
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


def test_a_workdir_of_another_configuration_is_refused(every_part, undisturbed):
    workdir = undisturbed(every_part)
    before = sorted(p for p in workdir.rglob("*") if p.is_file())
    result = run_module(
        "fsdit.main",
        f"--config={every_part}",
        f"--workdir={workdir}",
        "--config.model.hidden_size=64",
    )
    one_line_error(result, "config.model.hidden_size is 64", "has 32")
    assert sorted(p for p in workdir.rglob("*") if p.is_file()) == before
