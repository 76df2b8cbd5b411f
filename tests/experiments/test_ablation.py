"""The comparison of variants at equal time, without its runs."""

import json
import os
import subprocess
import sys
import threading

import pytest

from experiments.benchmarks import ablation
from fsdit.config import Config, OptimizerConfig, TrainConfig
from fsdit.errors import ConfigError
from fsdit.evaluation.results import IMAGE_SETS, Score, Table

BASE = Config(
    train=TrainConfig(num_steps=1000), optimizer=OptimizerConfig(warmup_steps=40), name="base"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"optimizer.warmup_steps": "20"}),
        ("model.norm=rms", {"model.norm": "rms", "optimizer.warmup_steps": "20"}),
        (
            "optimizer.warmup_steps=7,optimizer.method=muon",
            {"optimizer.method": "muon", "optimizer.warmup_steps": "7"},
        ),
    ],
)
def test_a_variant_keeps_its_settings_and_the_share_of_the_warm_up(text, expected):
    ablation.varied(BASE, text)
    same = {"seed": "3", "train.num_steps": "500", "train.eval_interval": "5000"}
    assert ablation.equal_time(BASE, 500, 3, text) == {**expected, **same}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.norm", "--variant=model.norm: write model.norm=VALUE"),
        ("model.norms=rms", "model.norms"),
        ("model.norm=rms,seed=1", "--variant=.*: seed is decided here"),
        ("train.num_steps=10", "train.num_steps is decided here"),
    ],
)
def test_a_variant_that_would_not_compare_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        ablation.varied(BASE, text)


def test_variants_that_are_only_sampled_otherwise_train_once():
    contrastive = "train.contrastive=0.05,sampling.contrastive=0.05"
    guided, variants = "sampling.guide=runs/guide", ["", "model.norm=rms", contrastive]
    assert ablation.by_training([*variants, guided, ""]) == {
        "": ["", guided],
        "model.norm=rms": ["model.norm=rms"],
        "train.contrastive=0.05": [contrastive],
    }
    assert ablation.split_variant(contrastive)[1] == "sampling.contrastive=0.05"
    names = {ablation.results_folder(text) for text in (*variants, guided)}
    assert len(names) == 3 and "test" in names


def test_a_variant_that_is_added_later_has_the_steps_of_its_training(tmp_path, monkeypatch):
    def timed_as_two(base, trainings):
        return dict.fromkeys(trainings, 2.0)

    monkeypatch.setattr(ablation, "step_ratios", timed_as_two)
    file = tmp_path / "ablation.json"
    entry = {"ratio": 1.25, "steps": 800, "scores": {"1": {"top1": {"0": 0.5}}}}
    file.write_text(json.dumps({"model.norm=rms": entry}))
    variants = ["", "model.norm=rms", "model.norm=rms,sampling.solver=heun", "model.mlp=swiglu"]
    found = ablation.timed(BASE, ablation.by_training(variants), file)
    assert found == json.loads(file.read_text())
    assert found["model.norm=rms"] == entry
    steps = {text: found[text]["steps"] for text in variants}
    assert list(steps.values()) == [500, 800, 800, 500]


def test_a_folder_with_another_experiment_is_refused(tmp_path):
    file = tmp_path / "runs" / "config.json"
    base = ablation.evaluated(BASE, ["1", "2"])
    assert base.evaluation.guidance_scales == (1, 2) and not base.evaluation.seen
    for _ in range(2):
        ablation.keep_experiment(base, file)
    for other in (ablation.evaluated(BASE, ["1"]), ablation.varied(base, "model.depth=3")):
        with pytest.raises(ConfigError, match="name another --output_dir"):
            ablation.keep_experiment(other, file)


def test_variants_have_folders_of_their_own():
    texts = ["", "a.b=c", "a.b=c,d=e", "a.b=c_d=e", "a.b=/c", "a.b=%2Fc"]
    names = {ablation.folder_name(text) for text in texts}
    assert len(names) == len(texts) and not any("/" in name for name in names)


@pytest.mark.parametrize(
    ("values", "text"), [([], "-"), ([0.5], "0.500"), ([1.0, 2.0, 3.0], "2.000 ± 0.577")]
)
def test_a_mean_has_the_standard_error_of_its_seeds(values, text):
    assert ablation.mean_text(values) == text


def test_the_baselines_stand_below_the_variants_in_their_columns(capsys):
    found = {"model.norm=rms": {"ratio": 1.25, "steps": 800, "scores": {}}}
    scores = {
        "top1": {"samples": Score(0.5), "real": Score(0.75), "mean_of_supports": Score(1.0)},
        "pairwise_distance": {"samples": Score(2.0), "real": Score(3.0)},
    }
    table = Table("test", False, 5, 1.5, 1, 2, scores, by_class={})
    ablation.print_table(found, baselines=table)
    lines = capsys.readouterr().out.strip().splitlines()
    head, _, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    named = {row[1]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(named) == ["model.norm=rms", *(IMAGE_SETS[name] for name in ablation._BASELINES)]
    real = {"top-1 retrieval": "0.750", "pairwise distance": "3.000", "FD": "-", "step": ""}
    mean = {"top-1 retrieval": "1.000", "pairwise distance": "-"}
    assert named[IMAGE_SETS["real"]].items() >= real.items()
    assert named[IMAGE_SETS["mean_of_supports"]].items() >= mean.items()


@pytest.mark.medium
def test_jobs_side_by_side_have_parts_of_the_cores():
    """A job that ends before the next begins would leave its thread, and cores, to that one."""
    command = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    both = threading.Barrier(2)

    def job(_: int) -> list[int]:
        both.wait(timeout=60)
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    mine = os.sched_getaffinity(0)
    with ablation.jobs_on_cores(2) as jobs:
        parts = list(jobs.map(job, range(2)))
    assert set().union(*parts) == mine == os.sched_getaffinity(0)
    if len(mine) > 1:
        assert not set.intersection(*map(set, parts))
