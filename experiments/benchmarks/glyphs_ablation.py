"""What each choice of the glyph experiment is worth, at equal compute.

    python -m experiments.benchmarks.glyphs_ablation --output_dir=runs/ablation \\
        --dataset_dir=datasets/glyphs

Trains each variant for as many steps as have the model FLOPs
(fsdit/training/flops.py) of --steps steps of experiments/glyphs.py, and evaluates it
on unseen characters. Prints one table, and writes it to ablation.json. A second start goes on.

Each variant is trained once, so differences below the intervals say nothing. On two CPU cores a
variant takes about two minutes.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from absl import flags

from fsdit import program
from fsdit.config import Config, apply_overrides, load_experiment
from fsdit.data.layout import read_dataset_info, write_json
from fsdit.evaluation.results import read_results
from fsdit.planning.programs import abstract_batch
from fsdit.planning.published import abstract_networks
from fsdit.training import flops as counting

_OUTPUT = program.define_path("output_dir", None, "Where runs and results go.", required=True)
_DATASET = program.define_path("dataset_dir", "datasets/glyphs", "The glyph dataset.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps of the unchanged experiment.")
_ONLY = flags.DEFINE_list("only", [], "Variants to run; empty: all.")

_EXPERIMENT = "experiments/glyphs.py"
_BLOCKS = {
    "model.qk_norm": "true",
    "model.norm": "rms",
    "model.mlp": "swiglu",
    "model.rotary": "true",
    "model.modulation": "single",
}
_VARIANTS = {
    "as in glyphs.py": {},
    "cross_attention=cls": {"model.cross_attention": "cls"},
    "cross_attention=none": {"model.cross_attention": "none"},
    "num_latents=16": {"model.num_latents": "16"},
    "num_latents=64": {"model.num_latents": "64"},
    "logit_mean=0": {"flow.logit_mean": "0"},
    "time=uniform": {"flow.time": "uniform"},
    **{f"{path.removeprefix('model.')}={value}": {path: value} for path, value in _BLOCKS.items()},
    "all variants of blocks": _BLOCKS,
}
_SCALES = ("1",)
_METRICS = ("top1", "frechet_distance", "kernel_distance", "recall", "near_copies")


def main(argv: list[str]) -> None:
    del argv
    base = load_experiment(_EXPERIMENT)
    base = apply_overrides(base, {"data.dataset_dir": _DATASET.value})
    budget = _STEPS.value * flops(base)
    results = Path(_OUTPUT.value) / "ablation.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    for name, changes in _VARIANTS.items():
        if _ONLY.value and name not in _ONLY.value:
            continue
        steps = round(budget / flops(apply_overrides(base, changes)))
        found[name] = {"steps": steps, "tables": run(name, changes, steps)}
        results.parent.mkdir(parents=True, exist_ok=True)
        write_json(results, found)
        print_table(found)


def flops(config: Config) -> int:
    """Model FLOPs of a train step."""
    info = read_dataset_info(config.data.dataset_dir)
    spec, frozen = abstract_networks(config, info)
    batch = abstract_batch(spec, frozen, config, info)
    return counting.of_step(spec, config, spec.abstract_params(), batch)


def run(name: str, changes: dict[str, str], steps: int) -> list[dict]:
    """Trains and evaluates a variant. Returns one table of scores for each guidance scale."""
    plain = "".join(c if c.isalnum() else "_" for c in name)
    workdir = Path(_OUTPUT.value) / f"{plain}_{steps}"
    settings = {**changes, "data.dataset_dir": _DATASET.value}
    settings |= {"train.num_steps": str(steps), "train.eval_interval": str(10 * steps)}
    python = (sys.executable, "-m")
    overrides = [f"--config.{path}={value}" for path, value in settings.items()]
    train = (*python, "fsdit.main", f"--config={_EXPERIMENT}", f"--workdir={workdir}", *overrides)
    evaluate = (
        *(*python, "fsdit.evaluate", f"--workdir={workdir}", "--split=test"),
        *(f"--output={workdir / 'test'}", "--config.evaluation.seen=false"),
        "--config.evaluation.samples_per_episode=1",
        f"--config.evaluation.guidance_scales={','.join(_SCALES)}",
    )
    for command in (train, evaluate):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    tables = read_results(workdir / "test" / "results.json").tables
    return [
        {
            "guidance_scale": table.guidance_scale,
            **{m: dataclasses.asdict(table.scores[m]["samples"]) for m in _METRICS},
        }
        for table in tables
    ]


def print_table(found: dict) -> None:
    print("| variant | steps | guidance | " + " | ".join(_METRICS) + " |")
    print("| --- " * (3 + len(_METRICS)) + "|")
    for name, result in found.items():
        for table in result["tables"]:
            cells = [
                f"{s['value']:.3f} ({s['low']:.3f} to {s['high']:.3f})"
                for s in (table[m] for m in _METRICS)
            ]
            head = f"| {name} | {result['steps']} | {table['guidance_scale']:g} | "
            print(head + " | ".join(cells) + " |")
    print(flush=True)


if __name__ == "__main__":
    program.run(main)
