import json
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image

from fsdit.errors import EXIT_PREEMPTED
from fsdit.evaluation.metrics import METRICS
from fsdit.evaluation.results import IMAGE_SETS, read_results, scalars
from tests.conftest import one_block, small_disk_at, small_run
from tests.data_prep.datasets import first_classes
from tests.evaluation.report.page_reader import read_page
from tests.programs import run_module, start_program
from tests.training.checkpoints.saved_runs import saved_run

pytestmark = pytest.mark.medium

PROTOCOL = (
    "--split=val",
    "--config.evaluation.classes=12",
    "--config.evaluation.samples_per_episode=2",
    "--config.evaluation.batch_size=8",
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, glyphs):
    """A run and its evaluation: (workdir, output)."""
    folder = tmp_path_factory.mktemp("evaluated")
    dataset = first_classes(glyphs, folder / "dataset", {"train": 24, "val": 12})
    saved_run(folder / "run", one_block(small_run(dataset)), steps=(5,))
    result = evaluate(folder / "run", folder / "result", "--config.evaluation.shots=1,5")
    assert result.returncode == 0, result.stderr
    *_, sentence, picture, report = result.stdout.splitlines()
    assert sentence.startswith("From one image of a class that it has never seen, ")
    assert picture == f"picture: {folder / 'result' / 'samples.png'}"
    assert report == f"report: {folder / 'result' / 'report.html'}"
    return folder / "run", folder / "result"


def evaluate(workdir, output, *flags, **options):
    names = (f"--workdir={workdir}", f"--output={output}")
    return run_module("fsdit.evaluate", *names, *PROTOCOL, *flags, **options)


def sample_files(output):
    return sorted((output / "samples").glob("*/*.npy"))


def test_an_evaluation_has_every_score_for_unseen_and_seen_classes(evaluated):
    results = read_results(evaluated[1] / "results.json")
    assert results.step == 5 and results.critic.startswith("trained-")
    assert "jax" in results.about["versions"] and "parameters" in results.about["model"]
    assert results.about["training"].startswith("step 5 of ")
    found = [(table.split, table.seen, table.shots) for table in results.tables]
    assert found == [("val", False, 1), ("train", True, 1), ("val", False, 5), ("train", True, 5)]
    for table in results.tables:
        assert table.episodes == 12 and table.samples == 24
        assert METRICS.keys() - table.scores.keys() == {"lpips", "inception_distance"}
        compared = {name for sets in table.scores.values() for name in sets}
        # For seen classes, the nearest training images would be further real images.
        assert compared == IMAGE_SETS.keys() - ({"nearest_training"} if table.seen else set())
        assert table.scores["near_copies"]["copied_support"].value == 1
        assert table.scores["top1"]["real"].value > table.scores["top1"]["other_class"].value


def test_report_results_and_tensorboard_agree(evaluated):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    _, output = evaluated
    results = read_results(output / "results.json")
    page, shown_scalars = read_page((output / "report.html").read_text()), scalars(results)
    for table in results.tables:
        (shown,) = page.all("table", data_table=table.name)
        for metric, scores in table.scores.items():
            (line,) = shown.all("tr", data_metric=metric)
            for name, score in scores.items():
                (cell,) = line.all("td", data_set=name)
                bounds = [score.value, score.low, score.high]
                assert cell.numbers == [bound for bound in bounds if bound is not None]
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    for tag, value in shown_scalars.items():
        (event,) = events.Tensors(tag)
        assert event.step == 5
        assert float(make_ndarray(event.tensor_proto)) == np.float32(value)
    with Image.open(output / "samples.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 3


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        pytest.param(signal.SIGTERM, EXIT_PREEMPTED, marks=pytest.mark.large),
    ],
)
def test_a_stopped_evaluation_resumes_to_the_same_results(evaluated, tmp_path, sent, status):
    workdir, undisturbed = evaluated
    output = tmp_path / "result"
    names = (f"--workdir={workdir}", f"--output={output}")
    flags = (*PROTOCOL, "--config.evaluation.shots=1,5")
    process = start_program("fsdit.evaluate", *names, *flags)
    while len(sample_files(output)) < 5:
        assert process.poll() is None, "the evaluation ended before the signal"
        time.sleep(0.01)
    process.send_signal(sent)
    assert process.wait() == status
    before = {file: file.stat().st_mtime_ns for file in sample_files(output)}
    assert not (output / "results.json").exists()

    again = evaluate(workdir, output, "--config.evaluation.shots=1,5")
    assert again.returncode == 0, again.stderr
    assert all(file.stat().st_mtime_ns == t for file, t in before.items())
    found, expected = sample_files(output), sample_files(undisturbed)
    assert [file.read_bytes() for file in found] == [file.read_bytes() for file in expected]
    assert json.loads((output / "results.json").read_text()) == json.loads(
        (undisturbed / "results.json").read_text()
    )


def test_a_file_as_output_and_a_damaged_sample_are_named(evaluated, tmp_path):
    workdir, undisturbed = evaluated
    flags = ("--config.evaluation.shots=1,5", "--config.evaluation.critic=pixels")
    (tmp_path / "file").touch()
    result = evaluate(workdir, tmp_path / "file")
    assert f"{tmp_path}/file is no folder" in result.stderr.splitlines()[-1]

    shutil.copytree(undisturbed, tmp_path / "copy")
    file = sample_files(tmp_path / "copy")[0]
    file.write_bytes(b"")
    result = evaluate(workdir, tmp_path / "copy", *flags)
    assert result.returncode == 1
    assert f"error: {file} is damaged" in result.stderr.splitlines()[-1]
    file.unlink()
    result = evaluate(workdir, tmp_path / "copy", *flags)
    assert result.returncode == 0, result.stderr
    assert file.read_bytes() == (undisturbed / file.relative_to(tmp_path / "copy")).read_bytes()


def test_samples_of_another_protocol_are_not_mixed(evaluated):
    workdir, output = evaluated
    before = (output / "results.json").read_bytes()
    result = evaluate(workdir, output, "--config.evaluation.seeds=1")
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"error: {output} holds samples of another checkpoint or protocol")
    assert (output / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.evaluation.classes=9999", "config.evaluation.classes=9999: the split 'val' has"),
        ("--config.evaluation.shots=1,99", "shots=99 needs 100"),
        ("--config.evaluation.critic=nowhere/at_all", "nowhere/at_all"),
        ("--config.evaluation.lpips=nowhere", "nowhere"),
        ("--config.evaluation.inception=nowhere.pth", "inception"),
        ("--config.evaluation.seeds=()", "config.evaluation.seeds is empty: name one or more"),
        ("--config.model.hidden_size=64", "config.model.hidden_size"),
    ],
)
def test_an_impossible_protocol_is_reported_in_one_line_and_leaves_nothing(
    evaluated, tmp_path, flag, message
):
    result = evaluate(evaluated[0], tmp_path / "result", flag)
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "result").exists()


def test_more_samples_than_the_disk_holds_are_refused_before_sampling(evaluated, tmp_path):
    with small_disk_at(tmp_path / "disk", "4m") as disk:
        result = evaluate(evaluated[0], disk / "result")
        assert result.returncode == 1
        assert f"error: {disk}/result: the samples need 64 MB" in result.stderr.splitlines()[-1]
        assert not sample_files(disk / "result")


def test_a_workdir_without_checkpoint_is_named(tmp_path):
    result = evaluate(tmp_path / "none", tmp_path / "result")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/none holds no checkpoint")
    assert not (tmp_path / "result").exists()
