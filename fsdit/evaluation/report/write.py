"""What an evaluation leaves behind: results.json, a picture, a page of HTML, TensorBoard."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fsdit.data.pictures import episode_grid, save_picture
from fsdit.evaluation.report.page import ClassPictures, render
from fsdit.evaluation.results import Results, scalars, write_results
from fsdit.events import open_writer, writing

__all__ = ["ClassPictures", "grids", "write", "write_tensorboard"]

_GRID_CLASSES = 12


def grids(
    results: Results, pictures: Sequence[ClassPictures]
) -> dict[str, UInt8[np.ndarray, "1 Y X C"]]:
    """TensorBoard's tag -> supports | drawings, one row a class, for each table with pictures.

    Up to 12 classes, evenly spaced among those given: how well they did does not count.
    """
    found = {}
    for table in results.tables:
        # One episode a class.
        classes = list({each.name: each for each in pictures if each.table == table.name}.values())
        if classes:
            places = np.linspace(0, len(classes) - 1, min(_GRID_CLASSES, len(classes)))
            shown = [classes[i] for i in places.round().astype(int)]
            drawings = np.stack([each.drawings for each in shown], axis=1)
            grid = episode_grid(np.stack([each.supports for each in shown]), list(drawings))
            found[f"{table.name}/drawings"] = grid[None]
    return found


def write(directory: Path, results: Results, pictures: Sequence[ClassPictures]) -> None:
    """Writes drawings.png (grid of the first table), report.html and, last, results.json.

    pictures: at least one of the first table; within a table all with as many supports and
    drawings. The three are whole before the first of them is in its place: where they
    cannot be written, an OutputError says so and `directory` keeps what it had.
    """
    picture = grids(results, pictures)[f"{results.tables[0].name}/drawings"][0]
    page = render(results, pictures)
    cell = pictures[0].drawings.shape[1]
    partial = directory / "report.partial"
    with writing(directory):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            save_picture(partial / "drawings.png", picture, zoom=max(1, 72 // cell))
            (partial / "report.html").write_text(page, "utf-8")
            write_results(partial / "results.json", results)
            for name in ("drawings.png", "report.html", "results.json"):
                (partial / name).replace(directory / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_tensorboard(directory: Path, results: Results, pictures: Sequence[ClassPictures]) -> None:
    """Writes the scalars and the grids at the results' step to `directory`/tensorboard.

    They lie in one file of their own name: a second evaluation replaces it, and events of
    others, of a run's training say, stay. Raises OutputError.
    """
    target, partial = directory / "tensorboard", directory / "tensorboard.partial"
    with writing(target):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            writer = open_writer(partial)
            writer.write_scalars(results.step, scalars(results))
            writer.write_images(results.step, grids(results, pictures))
            writer.close()
            [events] = partial.iterdir()
            target.mkdir(parents=True, exist_ok=True)
            events.replace(target / "events.out.tfevents.evaluation")
        finally:
            shutil.rmtree(partial, ignore_errors=True)
