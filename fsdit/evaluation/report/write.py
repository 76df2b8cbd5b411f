"""Writes an evaluation: results.json, a picture, a page of HTML, events for TensorBoard."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fsdit.data.pictures import episode_grid, save_picture
from fsdit.evaluation.report.class_pictures import ClassPictures, evenly_spaced
from fsdit.evaluation.report.page import render
from fsdit.evaluation.results import Results, scalars, write_results
from fsdit.events import write_events, writing

_GRID_CLASSES = 12


def grids(
    results: Results, pictures: Sequence[ClassPictures]
) -> dict[str, UInt8[np.ndarray, "1 Y X C"]]:
    """TensorBoard's tag -> grid of supports | samples, one class a row, for each table's pictures.

    Up to 12 classes are shown, evenly spaced among those given, whatever their scores are.
    """
    found = {}
    for table in results.tables:
        if shown := evenly_spaced(pictures, table.name, _GRID_CLASSES):
            samples = np.stack([each.samples for each in shown], axis=1)
            grid = episode_grid(np.stack([each.supports for each in shown]), list(samples))
            found[f"{table.name}/samples"] = grid[None]
    return found


def write(directory: Path, results: Results, pictures: Sequence[ClassPictures]) -> None:
    """Writes samples.png (grid of the first table), report.html and, last, results.json.

    All three are complete before the first is moved to its place. Where they cannot be
    written, `directory` keeps its old files, and an OutputError is raised.

    pictures: at least one of the first table; those of one table have the same number of
    supports and of samples.
    """
    picture = grids(results, pictures)[f"{results.tables[0].name}/samples"][0]
    page = render(results, pictures)
    height = pictures[0].samples.shape[1]
    partial = directory / "report.partial"
    with writing(directory):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            save_picture(partial / "samples.png", picture, zoom=max(1, 72 // height))
            (partial / "report.html").write_text(page, "utf-8")
            write_results(partial / "results.json", results)
            for name in ("samples.png", "report.html", "results.json"):
                (partial / name).replace(directory / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_tensorboard(directory: Path, results: Results, pictures: Sequence[ClassPictures]) -> None:
    """Writes the scalars and the grids at the results' step to `directory`/tensorboard.

    They are one file with a name of its own. A second evaluation replaces this file and leaves
    other event files alone, such as those of training. Raises OutputError.
    """
    target, partial = directory / "tensorboard", directory / "events.partial"
    with writing(target):
        try:
            target.mkdir(parents=True, exist_ok=True)
            write_events(partial, results.step, scalars(results), grids(results, pictures))
            partial.replace(target / "events.out.tfevents.evaluation")
        finally:
            partial.unlink(missing_ok=True)
