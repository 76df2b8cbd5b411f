"""What changed settings of an experiment are worth, at equal training time on this machine.

    python -m experiments.benchmarks.ablation --config=experiments/glyphs.py \\
        --output_dir=runs/ablation --seed=0 --seed=1 --seed=2 \\
        --variant=model.mlp=swiglu --variant=model.norm=rms,model.qk_norm=true

Train steps of all variants are timed in turns, and each variant trains for as many steps as take
the time of the unchanged experiment; its warm-up keeps its share of them. Then `fsdit.evaluate`
measures samples of unseen classes. Variants that differ in sampling.* alone share a training.
Prints a table of means over the seeds with standard errors, with real images and the baselines as
its last rows, and writes ablation.json. A second start goes on; give it the same variants, or
more. With --jobs=2 two runs go on side by side on a CPU, each on half of the cores, which small
models fill better.

--time_only times the steps and stops. To train on another machine, for example with a GPU, copy
ablation.json and config.json into its --output_dir, and the dataset to the same path: it then
trains for the numbers of steps that were found here.
"""

import functools
import itertools
import json
import math
import os
import statistics
import urllib.parse
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import flags

from experiments.benchmarks.compute.recipe_step import changed, settings_of
from experiments.benchmarks.compute.train_step import trainer_on_zeros
from experiments.benchmarks.programs import run_program
from experiments.benchmarks.turns import take_turns
from fsdit import program
from fsdit.config import Config, apply_overrides, to_dict
from fsdit.data.layout import write_json
from fsdit.data.run_dataset import read_run_dataset
from fsdit.errors import ConfigError
from fsdit.evaluation.metrics import METRICS
from fsdit.evaluation.results import IMAGE_SETS, Table, read_results

_METRICS = (
    *("top1", "pixel_frechet_distance", "pixel_recall", "pixel_pairwise_distance"),
    *("pixel_near_copies", "frechet_distance", "recall", "pairwise_distance"),
)
# They are the same for all variants that leave data and evaluation as they are.
_BASELINES = ("real", "copied_support", "mean_of_supports", "nearest_training")
_SAME = {"seed", "train.num_steps", "train.eval_interval"}  # decided here for all variants
_TURNS, _STEPS = 7, 3  # of the timing; a turn has so many train steps

# By settings of a variant, as text: {"ratio": time of a step, in steps of the unchanged
# experiment; "steps": of training; "scores": guidance -> metric -> seed -> value}
Found = dict[str, dict[str, Any]]


def main(argv: list[str]) -> None:
    del argv
    base, output = evaluated(_CONFIG(), _SCALES.value), Path(_OUTPUT.value)
    trainings = by_training(["", *_VARIANTS.value])
    for text in itertools.chain.from_iterable(trainings.values()):
        varied(base, text)  # refuses a wrong variant before anything is timed
    if not _TIME_ONLY.value:
        read_run_dataset(base)  # refuses a missing dataset, too
    keep_experiment(base, output / "config.json")
    results = output / "ablation.json"
    found = timed(base, trainings, results)

    def train_and_evaluate(case: tuple[int, str]) -> dict[str, Path]:
        """Trains once, and evaluates by each variant of the training; folders by variant."""
        seed, training = case
        variants = trainings[training]
        workdir = output / f"{folder_name(training)}-{seed}"
        folders = {text: workdir / results_folder(text) for text in variants}
        missing = [t for t in variants if not (folders[t] / "results.json").exists()]
        if missing:
            settings = equal_time(base, found[variants[0]]["steps"], seed, training)
            experiment = f"--config={output / 'config.json'}"
            run("fsdit.main", settings, experiment, f"--workdir={workdir}")
        for text in missing:
            sampling = settings_of(split_variant(text)[1])
            run("fsdit.evaluate", sampling, f"--workdir={workdir}", f"--output={folders[text]}")
        return folders

    cases = [] if _TIME_ONLY.value else list(itertools.product(_SEEDS.value, trainings))
    with jobs_on_cores(_JOBS.value) as jobs:
        done = jobs.map(train_and_evaluate, cases)
        for (seed, _), folders in zip(cases, done, strict=True):
            for text, folder in folders.items():
                tables = read_results(folder / "results.json").tables
                add_scores(found[text]["scores"], tables, seed)
            write_json(results, found)
            print_table(found, baselines=tables[0])


def jobs_on_cores(count: int) -> ThreadPoolExecutor:
    """Threads that run jobs, each of which and its processes have an equal part of the cores.

    Where a system cannot say which cores a process has, all jobs have all of them.
    """
    if not hasattr(os, "sched_setaffinity"):
        return ThreadPoolExecutor(count)
    cores = sorted(os.sched_getaffinity(0))
    parts = iter([cores[job::count] or cores for job in range(count)])
    # It sets the cores of the calling thread, and a process inherits those of its thread.
    return ThreadPoolExecutor(count, initializer=lambda: os.sched_setaffinity(0, next(parts)))


def evaluated(config: Config, scales: list[str]) -> Config:
    """The experiment, evaluated on unseen classes at these guidance scales. Raises ConfigError."""
    return apply_overrides(
        config,
        {"evaluation.seen": "false", "evaluation.guidance_scales": ",".join(scales)},
    )


def varied(base: Config, text: str) -> Config:
    """The experiment with the settings of a variant. Raises ConfigError."""
    config = changed(base, text, flag="variant")
    for name in settings_of(text).keys() & _SAME:
        raise ConfigError(f"--variant={text}: {name} is decided here for all variants alike")
    return config


def keep_experiment(config: Config, file: Path) -> None:
    """Writes the experiment for its runs. Raises ConfigError where there is another one."""
    if file.exists():
        if json.loads(file.read_text()) != json.loads(json.dumps(to_dict(config))):
            raise ConfigError(
                f"{file.parent} compares variants of another experiment, or at other guidance "
                "scales: name another --output_dir"
            )
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, to_dict(config))


def split_variant(text: str) -> tuple[str, str]:
    """The settings of a variant that training has, and those of sampling alone."""
    settings = list(filter(None, text.split(",")))
    sampling = [setting for setting in settings if setting.startswith("sampling.")]
    return ",".join(s for s in settings if s not in sampling), ",".join(sampling)


def by_training(variants: list[str]) -> dict[str, list[str]]:
    """The variants of each training, which differ in how they are sampled."""
    trainings: dict[str, list[str]] = {}
    for text in dict.fromkeys(variants):
        trainings.setdefault(split_variant(text)[0], []).append(text)
    return trainings


def timed(base: Config, trainings: dict[str, list[str]], results: Path) -> Found:
    """Returns the contents of the file of results, after timing the trainings that it lacks."""
    found: Found = json.loads(results.read_text()) if results.exists() else {}
    ratios = {split_variant(text)[0]: entry["ratio"] for text, entry in found.items()}
    if missing := trainings.keys() - ratios.keys():
        ratios = step_ratios(base, missing) | ratios
    for training, texts in trainings.items():
        ratio = ratios[training]
        for text in texts:
            entry = {"ratio": ratio, "steps": round(base.train.num_steps / ratio), "scores": {}}
            found.setdefault(text, entry)
    write_json(results, found)
    print_table(found)
    return found


def step_ratios(base: Config, trainings: Iterable[str]) -> dict[str, float]:
    """Time of a train step of each training, in steps of the one named ""; the best of turns."""
    sides = {
        training: functools.partial(trainer_on_zeros(varied(base, training)), _STEPS)
        for training in {"", *trainings}
    }
    seconds, _ = take_turns(sides, _TURNS)
    best = {training: min(times) for training, times in seconds.items()}
    return {training: time / best[""] for training, time in best.items()}


def equal_time(base: Config, steps: int, seed: int, text: str) -> dict[str, str]:
    """What a run of a variant changes in the experiment, as text by dotted path."""
    warmup = round(base.optimizer.warmup_steps * steps / base.train.num_steps)
    return {
        "optimizer.warmup_steps": str(warmup),
        **settings_of(text),
        "seed": str(seed),
        "train.num_steps": str(steps),
        "train.eval_interval": str(10 * steps),
    }


def run(module: str, settings: dict[str, str], *given: str) -> None:
    """Runs a program with some settings changed. Raises FsditError where it fails."""
    run_program(module, *given, *(f"--config.{path}={value}" for path, value in settings.items()))


def add_scores(scores: dict[str, Any], tables: Iterable[Table], seed: int) -> None:
    """Adds what an evaluation found, by guidance scale, metric and seed."""
    for table in tables:
        at = scores.setdefault(f"{table.guidance_scale:g}", {})
        for metric in _METRICS:
            if metric in table.scores:
                value = table.scores[metric]["samples"].value
                at.setdefault(metric, {})[str(seed)] = value


def folder_name(text: str) -> str:
    """A name of its own for the runs of each training."""
    return urllib.parse.quote(text, safe="=,") or "unchanged"


def results_folder(text: str) -> str:
    """A name of its own for the results of each way to sample."""
    sampling = split_variant(text)[1]
    return f"test,{folder_name(sampling)}" if sampling else "test"


def print_table(found: Found, baselines: Table | None = None) -> None:
    """Prints what was found; below it real images and the baselines, where a table has them."""
    labels = [METRICS[metric].label for metric in _METRICS]
    print("| variant | step | steps | guidance | " + " | ".join(labels) + " |")
    print("| --- " * (4 + len(_METRICS)) + "|")
    for text, entry in found.items():
        head = f"| {text or 'unchanged'} | {entry['ratio']:.2f} | {entry['steps']} | "
        scores = sorted(entry["scores"].items(), key=lambda item: float(item[0]))
        for scale, metrics in scores or [("-", {})]:
            cells = [mean_text(list(metrics.get(m, {}).values())) for m in _METRICS]
            print(f"{head}{scale} | " + " | ".join(cells) + " |")
    for name in _BASELINES if baselines else ():
        scores = [baselines.scores.get(metric, {}).get(name) for metric in _METRICS]
        cells = [mean_text([score.value] if score else []) for score in scores]
        print(f"| {IMAGE_SETS[name]} | | | | " + " | ".join(cells) + " |")
    print(flush=True)


def mean_text(values: list[float]) -> str:
    """The mean of seeds, with its standard error where there are several."""
    if not values:
        return "-"
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    _CONFIG = program.define_config()
    _OUTPUT = program.define_path("output_dir", None, "For runs and results.", required=True)
    _VARIANTS = flags.DEFINE_multi_string(
        "variant", [], "Changed settings, as a.b=c,d.e=f; may be repeated."
    )
    _SEEDS = flags.DEFINE_multi_integer("seed", [0], "Seed of a run of each variant; repeatable.")
    _TIME_ONLY = flags.DEFINE_bool("time_only", False, "Time the train steps and stop.")
    _JOBS = flags.DEFINE_integer("jobs", 1, "Runs side by side.", lower_bound=1)
    _SCALES = flags.DEFINE_list("guidance_scales", ["1", "1.5", "2", "3"], "Of the tables.")
    program.run(main)
