"""Runs the benchmarks of training and sampling, and writes a table and a JSON file.

    python -m experiments.benchmarks.all --dataset_dir=datasets/glyphs --output_dir=runs/benchmarks

It measures the train step, the input pipeline, the sampler, saving and restoring a checkpoint,
and the time from start to first step. Each benchmark runs in a process of its own, one after
another, and its figures are written as soon as it is done, so that one that fails loses no
others. Each module also runs alone, with more turns.
"""

import json
import multiprocessing
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from absl import flags

from fsdit import program
from fsdit.data.layout import write_json
from fsdit.errors import EXIT_ERROR

# A row of the table: what was measured, and the figure.
Row = tuple[str, str]


def _train_step(dataset: str) -> dict[str, Any]:
    from experiments.benchmarks.compute import train_step

    del dataset
    return train_step.measure(train_step.Settings(turns=3, steps=2))


def _feeding(dataset: str) -> dict[str, Any]:
    from experiments.benchmarks.input import feeding

    del dataset
    return feeding.measure(feeding.Settings())


def _sampler(dataset: str) -> dict[str, Any]:
    from experiments.benchmarks.compute import sampler

    del dataset
    return sampler.measure(sampler.Settings(turns=3))


def _checkpoint(dataset: str) -> dict[str, Any]:
    from experiments.benchmarks.lifecycle import checkpoint_stall

    return checkpoint_stall.measure(dataset, num_steps=50, devices=1)


def _starts(dataset: str) -> dict[str, Any]:
    from experiments.benchmarks.lifecycle import starts

    return starts.measure(dataset)


BENCHMARKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "train_step": _train_step,
    "feeding": _feeding,
    "sampler": _sampler,
    "checkpoint": _checkpoint,
    "starts": _starts,
}


def main(argv: list[str]) -> None:
    del argv
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for name in _ONLY.value:
        print(f"{name} ...", flush=True)
        results[name] = measured(name, _DATASET.value)
        write_json(output / "results.json", results)
        text = table(results)
        (output / "table.md").write_text(text)
    print(text)
    if any("error" in result for result in results.values()):
        raise SystemExit(EXIT_ERROR)


def measured(name: str, dataset: str) -> dict[str, Any]:
    """Runs a benchmark. Returns its result as JSON has it, or {"error": last line} if it failed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return json.loads(json.dumps(process.submit(BENCHMARKS[name], dataset).result()))
        except Exception as error:  # the other benchmarks run whatever happens to this one
            traceback.print_exc()
            return {"error": traceback.format_exception_only(error)[-1].strip()}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns a Markdown table with one row for each figure."""
    rows = [row for name, result in results.items() for row in _rows(name, result)]
    return "".join(f"| {what} | {figure} |\n" for what, figure in [_HEAD, ("---", "---"), *rows])


_HEAD = ("measured", "figure")


def _rows(name: str, result: dict[str, Any]) -> list[Row]:
    if "error" in result:
        return [(name, f"failed: {result['error']}")]
    return [*_FIGURES[name](result), *_machine(name, result)]


def _machine(name: str, result: dict[str, Any]) -> list[Row]:
    found = result.get("machine")
    return (
        [(f"load beside {name}", f"{found['load']:.1f}, {found['cores']} cores")] if found else []
    )


def _rates(result: dict[str, Any]) -> list[Row]:
    return [
        (side, f"{found['best']:.2f} images/s, median {found['median']:.2f}")
        for side, found in result["images_per_second"].items()
    ]


def _of_train_step(result: dict[str, Any]) -> list[Row]:
    ratio = [(f"JAX / PyTorch, {kind}", f"{r:.2f}") for kind, r in result["ratio"].items()]
    return [*_rates(result), *ratio]


def _of_feeding(result: dict[str, Any]) -> list[Row]:
    times = [
        (f"input, {form} / train step", f"{ratio['best']:.1f}, median {ratio['median']:.1f}")
        for form, ratio in result["times_the_step"].items()
    ]
    return [(f"beside the input: {what}", figure) for what, figure in _rates(result)] + times


def _of_sampler(result: dict[str, Any]) -> list[Row]:
    return [
        (
            f"sampler, batch {batch}",
            f"{found['images_per_second']:.1f} images/s, "
            f"{found['loop / one dispatch']:.2f} times a loop of steps",
        )
        for batch, found in result["batches"].items()
    ]


def _of_checkpoint(result: dict[str, Any]) -> list[Row]:
    figure = f"{result['stall_seconds']:.2f} s, {result['ratio']:.2f} of a step"
    return [("stall of a save", figure)]


def _of_starts(result: dict[str, Any]) -> list[Row]:
    rows = [
        (
            f"start to first step, {start}",
            f"{values['to_first_step_seconds']:.1f} s, "
            f"of that compiling {values['compile_seconds']:.1f} s",
        )
        for start, values in result.items()
    ]
    restoring = result["from the cache"]["restore_seconds"]
    return [*rows, ("restoring a checkpoint", f"{restoring:.2f} s")]


_FIGURES: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    "train_step": _of_train_step,
    "feeding": _of_feeding,
    "sampler": _of_sampler,
    "checkpoint": _of_checkpoint,
    "starts": _of_starts,
}


if __name__ == "__main__":
    _DATASET = program.define_path("dataset_dir", "datasets/glyphs", "The glyph dataset.")
    _OUTPUT = program.define_path("output_dir", None, "For results and table.", required=True)
    _ONLY = flags.DEFINE_multi_enum(
        "benchmark", list(BENCHMARKS), list(BENCHMARKS), "To run; may be repeated."
    )
    program.run(main)
