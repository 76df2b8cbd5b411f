"""Runs whose data and workdir lie in a bucket are those of a disk, through kills and moves."""

import dataclasses
import json
import signal

import pytest

import fsdit
from fsdit import storage
from fsdit.config import apply_overrides
from fsdit.storage import bucket as objects
from tests.conftest import experiment_file
from tests.processes import finish, losses, start, start_pod, wait_for_step
from tests.programs import one_line_error, run_module

pytestmark = pytest.mark.medium
STEPS = 40


@pytest.fixture
def config(small_config):
    return dataclasses.replace(
        small_config,
        data=dataclasses.replace(small_config.data, batch_size=8),
        train=dataclasses.replace(
            small_config.train, num_steps=STEPS, eval_interval=1000, eval_batches=1
        ),
        checkpoint=dataclasses.replace(small_config.checkpoint, interval=7),
    )


def succeed(module, *flags):
    result = run_module(module, *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout


def published(workdir):
    """The steps of metrics.jsonl in a bucket."""
    content, _ = objects.read(f"{workdir}/metrics.jsonl")
    return [json.loads(line)["step"] for line in content.splitlines()]


def kill(pod):
    for process in pod:
        process.kill()
    for process in pod:
        process.communicate()


@pytest.mark.large
def test_a_pod_in_a_bucket_computes_what_it_computes_on_a_disk(bucket, tmp_path, config, all_cores):
    data, workdir = f"{bucket}/glyphs", f"{bucket}/run"
    succeed("data_prep.glyphs", f"--output_dir={data}")
    assert "valid" in succeed("data_prep.verify", f"--dataset_dir={data}")
    on_disk = experiment_file(tmp_path / "disk.py", config)
    remote = experiment_file(
        tmp_path / "bucket.py", apply_overrides(config, {"data.dataset_dir": data})
    )

    for step in (9, 18):
        pod = start_pod(2, remote, workdir)
        wait_for_step(pod[0], workdir, step)
        kill(pod)
    pod = start_pod(2, remote, workdir, "--config.checkpoint.interval=1")
    wait_for_step(pod[0], workdir, 22)
    pod[0].send_signal(signal.SIGTERM)
    assert [finish(process)[0] for process in pod] == [75, 75]
    stopped = max(losses(workdir))
    pod = start_pod(2, remote, workdir)
    ends = [finish(process) for process in pod]
    assert [status for status, _ in ends] == [0, 0], ends
    assert f"after step {stopped}" in ends[0][1]
    assert published(workdir) == list(range(1, STEPS + 1))

    pod = start_pod(2, on_disk, tmp_path / "run")
    assert [finish(process)[0] for process in pod] == [0, 0]
    assert losses(workdir) == losses(tmp_path / "run")

    few = "--config.evaluation.samples_per_episode=1"
    succeed("fsdit.evaluate", f"--workdir={workdir}", f"--output={workdir}/test", few)
    report = {"results.json", "report.html", "samples.png"}
    assert report <= objects.objects(f"{workdir}/test").keys()
    succeed("fsdit.export", f"--workdir={workdir}", f"--output={bucket}/exported")
    generator = fsdit.load(f"{bucket}/exported")
    assert generator.step == STEPS and generator.config.data.dataset_dir == "glyphs"

    copy = storage.local_copy(workdir)
    more = f"--config.train.num_steps={STEPS + 3}"
    status, output = finish(start(on_disk, copy, more))
    assert status == 0 and f"after step {STEPS}" in output, output
    assert sorted(losses(copy)) == list(range(1, STEPS + 4))


@pytest.mark.large
def test_checkpoints_copied_from_a_disk_in_any_order_go_on_in_a_bucket(bucket, tmp_path, config):
    experiment = experiment_file(tmp_path / "experiment.py", config)
    short = "--config.train.num_steps=9"
    status, output = finish(start(experiment, tmp_path / "run", short))
    assert status == 0, output
    files = [p for p in sorted((tmp_path / "run").rglob("*"), reverse=True) if p.is_file()]
    for path in files:
        objects.upload(path, f"{bucket}/run/{path.relative_to(tmp_path / 'run')}")
    status, output = finish(start(experiment, f"{bucket}/run", "--config.train.num_steps=11"))
    assert status == 0 and "after step 9" in output, output
    assert published(f"{bucket}/run") == list(range(1, 12))
    kept = {name.split("/")[1] for name in objects.objects(f"{bucket}/run") if "/state/" in name}
    assert kept == {"9", "11"}  # keep_last is 2; Orbax has not deleted what it did not write

    # A copy that lacks a file is set aside, and not deleted.
    objects.delete(f"{bucket}/run/checkpoints/11/meta/metadata")
    status, output = finish(start(experiment, f"{bucket}/run", "--config.train.num_steps=12"))
    assert status == 0 and "11 is damaged" in output and "after step 9" in output, output
    assert any("checkpoints/11.damaged/" in name for name in objects.objects(f"{bucket}/run"))
    assert published(f"{bucket}/run") == list(range(1, 13))


@pytest.mark.large
def test_a_state_saved_on_eight_devices_goes_on_on_two(bucket, tmp_path, config):
    experiment, workdir = experiment_file(tmp_path / "experiment.py", config), f"{bucket}/run"
    for devices, steps in ((8, 3), (2, 5)):
        flags = (f"--config.mesh.fsdp={devices}", f"--config.train.num_steps={steps}")
        status, output = finish(start(experiment, workdir, *flags, devices=devices))
        assert status == 0, output
    assert "after step 3" in output  # the state's fingerprint was that of before
    assert published(workdir) == [1, 2, 3, 4, 5]


@pytest.mark.large
def test_a_first_save_that_a_kill_cut_off_does_not_count_and_a_half_copied_one_does(
    bucket, tmp_path, config
):
    experiment = experiment_file(tmp_path / "experiment.py", config)
    short = "--config.train.num_steps=2"
    note = {"init_timestamp_nsecs": 1, "commit_timestamp_nsecs": None}
    for run, files in (
        ("cut", {"_CHECKPOINT_METADATA": json.dumps(note).encode(), "state/x": b"1"}),
        ("half", {"state/x": b"1"}),
    ):
        for name, content in files.items():
            assert objects.write(f"{bucket}/{run}/checkpoints/1/{name}", content, 0)
    status, output = finish(start(experiment, f"{bucket}/cut", short))
    assert status == 0, output
    assert not any("/1/" in name for name in objects.objects(f"{bucket}/cut"))
    result = run_module("fsdit.main", f"--config={experiment}", f"--workdir={bucket}/half", short)
    one_line_error(result, "--start_over")
    assert "checkpoints/1/state/x" in objects.objects(f"{bucket}/half")


WRONG = {
    "no such bucket": ("gs://no-such-bucket/run", "no such bucket"),
    "another store": ("s3://bucket/run", "s3: is no store"),
    "a bucket alone": ("gs://bucket", "name a folder of the bucket"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_workdir_that_cannot_be_used_is_one_line_before_any_device_work(
    bucket, tmp_path, config, case
):
    workdir, words = WRONG[case]
    experiment = experiment_file(tmp_path / "experiment.py", config)
    result = run_module("fsdit.main", f"--config={experiment}", f"--workdir={workdir}")
    one_line_error(result, words, workdir)


def test_records_are_read_from_the_bucket_itself_where_no_copy_is_wanted(bucket, glyphs, config):
    from fsdit.data import pipeline
    from fsdit.features.staging import with_local_copies

    for path in glyphs.rglob("*"):
        if path.is_file():
            objects.upload(path, f"{bucket}/{path.relative_to(glyphs)}")
    local = pipeline.training_examples(config)(5)
    for cache in ("off", ""):
        remote = apply_overrides(config, {"data.dataset_dir": bucket, "data.cache_dir": cache})
        read = with_local_copies(remote)
        assert storage.is_remote(read.data.dataset_dir) == (cache == "off")
        found = pipeline.training_examples(read)(5)
        assert found.keys() == local.keys()
        assert all((found[name] == local[name]).all() for name in local)
