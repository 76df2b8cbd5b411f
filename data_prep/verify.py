"""Checks every file and record of a dataset, and that no two splits share an image.

    python -m data_prep.verify --dataset_dir=datasets/mini

Exit status 0: valid; 1: damaged; 2: every file is valid, but classes or pixel-identical
images are in two splits (leakage), so that training has seen what a test asks for.

It checks sizes and sha256 of all files, reads every record, decodes every image, and looks
for episodes out of range, and for classes and pixel-identical images in two splits. It prints
one line for each damage. --fast reads a sample of the records of each file, and so cannot look
for images in two splits; a file whose sha256 is wrong is read in full to name its records.
"""

import collections
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from data_prep import checks, pool
from data_prep.checks import Checked, Damage, ListedFile
from fsdit import program, storage
from fsdit.data.layout import DatasetInfo, read_dataset_json
from fsdit.errors import DataError

EXIT_LEAKAGE = 2

_DATASET_DIR = program.define_path("dataset_dir", None, "The dataset to check.", required=True)
_FAST = flags.DEFINE_bool("fast", False, "Read a sample of the records of each file.")
_WORKERS = flags.DEFINE_integer(
    "workers", len(os.sched_getaffinity(0)), "Processes; 0: this one.", lower_bound=0
)
_MAX_LINES = flags.DEFINE_integer(
    "max_lines", 20, "Damages of one file that are shown one by one.", lower_bound=1
)

_CHUNK = 512  # records a task
_SAMPLE = 100  # records of a file with --fast, at least


@dataclasses.dataclass(frozen=True)
class Report:
    """What a verification found. fast: whether records were sampled."""

    info: DatasetInfo
    shards: list[ListedFile]
    damages: list[Damage]
    fast: bool


@dataclasses.dataclass(frozen=True)
class _Reading:
    """One task: the chosen records of one file."""

    shard: ListedFile
    chosen: range
    info: DatasetInfo


def _read(task: _Reading) -> Checked:
    return checks.check_records(task.shard, task.chosen, task.info)


def verify(directory: Path, fast: bool, workers: int) -> Report:
    """Checks a dataset. Raises DataError where there is no `dataset.json` to check against."""
    info = read_dataset_json(directory)
    damages = list(checks.description_damages(info, directory / "dataset.json"))
    damages += checks.stray_damages(directory, info)
    shards: list[ListedFile] = []
    for split in info.splits:
        listed, wrong = checks.list_files(directory, split, info)
        shards += listed
        damages += wrong
    with tqdm(total=2 * sum(s.bytes for s in shards), unit="B", unit_scale=True) as bar:
        bad_files = _check_files(shards, workers, bar)
        found, images = _check_contents(shards, bad_files, info, fast, workers, bar)
    damages += _file_lines(bad_files, {damage.path for damage in found})
    damages += found
    if not fast:
        damages += _leaks(shards, images)
    return Report(info, shards, damages, fast)


def _check_files(shards: list[ListedFile], workers: int, bar: tqdm) -> dict[ListedFile, str]:
    bar.set_description("checksums")
    bad = {}
    for shard, text in pool.results(checks.file_damage, shards, workers):
        bar.update(shard.bytes)
        if text:
            bad[shard] = text
    return bad


def _check_contents(
    shards: list[ListedFile],
    bad_files: dict[ListedFile, str],
    info: DatasetInfo,
    fast: bool,
    workers: int,
    bar: tqdm,
) -> tuple[list[Damage], dict[str, np.ndarray]]:
    """Returns damages of records, and the fingerprints of each split's images."""
    bar.set_description("records")
    damages: list[Damage] = []
    images = {name: [np.empty(0, checks.FINGERPRINT)] for name in info.splits}
    present = [s for s in shards if s.path.is_file()]
    tasks = (
        _Reading(shard, chosen, info)
        for shard in present
        for chosen in _portions(shard.records, fast and shard not in bad_files)
    )
    for task, checked in pool.results(_read, tasks, workers):
        shard, chosen = task.shard, task.chosen
        bar.update(shard.bytes * (chosen.stop - chosen.start) // max(shard.records, 1))
        if checked is None:
            text = (
                f"{shard.path}, records {chosen.start} to {chosen.stop - 1}: reading them crashes"
            )
            damages.append(Damage(shard.split, shard.path, text))
            continue
        images[shard.split].append(checked.fingerprints)
        damages += [Damage(shard.split, shard.path, text) for text in checked.damages]
    joined = {name: np.concatenate(parts) for name, parts in images.items()}
    # Each task of a file that cannot be opened has reported it.
    return sorted(dict.fromkeys(damages), key=lambda d: d.path), joined


def _portions(count: int, sampled: bool) -> Iterator[range]:
    """Yields the records of each task of a file. An empty file has a task, so it is opened."""
    if sampled:
        yield range(0, count, max(1, count // _SAMPLE))
    else:
        yield from (range(i, min(i + _CHUNK, count)) for i in range(0, max(count, 1), _CHUNK))


def _file_lines(bad_files: dict[ListedFile, str], explained: set[Path]) -> Iterator[Damage]:
    for shard, text in bad_files.items():
        if shard.path.is_file() and shard.path not in explained:
            text += ", though each of its records is valid: a file of another dataset, or damaged "
            text += "between its records"
        yield Damage(shard.split, shard.path, text)


def _leaks(shards: list[ListedFile], images: dict[str, np.ndarray]) -> Iterator[Damage]:
    for group in checks.shared_images(images):
        first, *others = group
        for split, index in others:
            if split != first[0]:
                where, twin = checks.locate(shards, split, index), checks.locate(shards, *first)
                path = Path(where.partition(", record")[0])
                text = f"{where}: leakage: the same pixels as {twin}"
                yield Damage(split, path, text, leakage=True)


def table(report: Report) -> str:
    """Returns a table of the splits with their sizes and states."""
    lines = [f"{'split':<8}{'classes':>9}{'images':>10}{'episodes':>10}{'bytes':>16}  state"]
    bad = collections.Counter((damage.split, damage.leakage) for damage in report.damages)
    for name, split in report.info.splits.items():
        size = sum(shard.bytes for shard in report.shards if shard.split == name)
        valid = "valid (sampled)" if report.fast else "valid"
        counts = {"damaged": bad[name, False], "leakage": bad[name, True]}
        states = [f"{state} ({count})" for state, count in counts.items() if count]
        state = ", ".join(states) or valid
        lines.append(
            f"{name:<8}{len(split.classes):>9}{split.num_images:>10}{split.episodes:>10}"
            f"{size:>16,}  {state}"
        )
    return "\n".join(lines)


def damage_lines(damages: Iterable[Damage], most: int) -> Iterator[str]:
    """Yields one line for each damage; of a file with more than `most`, the rest as a number."""
    counts: collections.Counter[Path] = collections.Counter()
    for damage in damages:
        counts[damage.path] += 1
        if counts[damage.path] <= most:
            yield damage.text
    for path, count in counts.items():
        if count > most:
            yield f"{path}: {count - most} more damages; --max_lines={count} shows them"


def conclude(directory: Path, report: Report) -> int:
    """Returns the exit status of a dataset without damage. Raises DataError for a damaged one."""
    damaged = sum(not damage.leakage for damage in report.damages)
    leaks = len(report.damages) - damaged
    also = f", and {leaks} leaks between splits" if leaks else ""
    if damaged:
        raise DataError(
            f"{directory}: damaged, {damaged} found{also}, listed above: copy the named files "
            "again, or convert again"
        )
    if leaks:
        found = f"{directory}: leakage, {leaks} found, listed above; the files are valid"
        print(f"error: {found}: {_remedies(report)}", file=sys.stderr)
        return EXIT_LEAKAGE
    return 0


def _remedies(report: Report) -> str:
    """Returns what to do where files are valid but splits share images or classes."""
    classes = any(d.leakage and d.path.name == "dataset.json" for d in report.damages)
    images = any(d.leakage and d.path.name != "dataset.json" for d in report.damages)
    advice = []
    if images:
        advice.append(
            "pixel-identical images are in two splits: convert with --shared_duplicates=first, "
            "which keeps one of them, or =none"
        )
    if classes:
        advice.append(
            "classes are in two splits: take them out of one in --input, or convert with "
            "--split=fewshot, which deals complete classes"
        )
    return "; ".join(advice)


def main(argv: list[str]) -> int:
    del argv
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may be no text
    directory = storage.local_copy(_DATASET_DIR.value)
    report = verify(directory, _FAST.value, _WORKERS.value)
    print(table(report))
    for line in damage_lines(report.damages, _MAX_LINES.value):
        print(line)
    status = conclude(directory, report)
    if report.fast:
        print("sampled records only; images that are in two splits were not looked for")
    return status


if __name__ == "__main__":
    program.run(main)
