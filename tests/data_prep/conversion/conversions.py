"""Conversions as their user starts them, with checks of what they leave."""

import csv
from pathlib import Path

from tests.data_prep.conversion.photos import encoded, files, photo
from tests.programs import run_module


def convert(source: Path, output: Path, *flags: str):
    return run_module("data_prep.convert", f"--input={source}", f"--output_dir={output}", *flags)


def succeed(source: Path, output: Path, *flags: str) -> str:
    done = convert(source, output, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not output.with_name(output.name + ".partial").exists()
    return done.stdout


def check_valid(dataset: Path) -> None:
    """Checks the dataset with data_prep.verify."""
    done = run_module("data_prep.verify", f"--dataset_dir={dataset}")
    assert done.returncode == 0, done.stdout + done.stderr


def fail(source: Path, output: Path, *flags: str) -> str:
    """The error line of a conversion, which must fail, change no file and leave no output."""
    before = {path: files(path) for path in (source, output) if path.is_dir()}
    done = convert(source, output, *flags)
    assert done.returncode == 1, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert before == {path: files(path) for path in before}
    assert (output in before) == output.exists()
    return line


SMALL = ("--num_classes=3,1,2", "--sets_per_class=4", "--shard_mb=0.01", "--workers=1")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_lists(folder: Path, assigned: dict[str, list[int]]) -> None:
    """Writes all images to images/, and train.csv, val.csv, test.csv, as they are published."""
    (folder / "images").mkdir(parents=True)
    for split, classes in assigned.items():
        lines = ["filename,label"]
        for c in classes:
            for i in range(7):
                name = f"n{c:08d}{i:08d}.jpg"
                (folder / "images" / name).write_bytes(encoded(photo(100 * c + i)))
                lines.append(f"{name},n{c:08d}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
