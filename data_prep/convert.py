"""Any class-labelled image collection -> a dataset to train on.

    python -m data_prep.convert --input=miniimagenet --output_dir=datasets/mini --image_size=256

The input is a folder of class folders, split folders, a zip or tar of either, Parquet files,
or images beside CSV lists of `filename,label`. If this is stopped at any moment, the same
command goes on. The same input and flags give the same bytes, however many workers there are.
"""

import dataclasses
import os
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL
from absl import flags
from etils import epath
from PIL import ImageColor

from data_prep.conversion import finish, jobs, notes, runners, shards, splits
from data_prep.conversion.counts import parse_class_counts, parse_image_counts
from data_prep.conversion.images import ImageOptions
from data_prep.conversion.inputs import reading
from data_prep.conversion.inputs.entries import Entry
from fsdit import program, storage
from fsdit.data import episodes, layout
from fsdit.errors import ConfigError, OutputError, system_text
from fsdit.program.ownership import owned

_INPUT = program.define_path("input", None, "Folder, zip, tar or Parquet file.", required=True)
_OUTPUT_DIR = program.define_path("output_dir", None, "Where to write the dataset.", required=True)
_CSV = program.define_paths("csv", "Lists of filename,label; default: those in --input.")
_TEST_INPUT = program.define_path("test_input", None, "One more: its classes are the test split.")
_CLASS_DEPTH = flags.DEFINE_integer(
    "class_depth", None, "The class is the path of so many folders, below those that all share "
    "and below train, val, test. Default: the folder that holds the image.", lower_bound=1,
)  # fmt: skip
_IMAGE_COLUMN = flags.DEFINE_string("image_column", "image", "Of Parquet files.")
_LABEL_COLUMN = flags.DEFINE_string("label_column", "label", "Of Parquet files.")

_SPLIT = flags.DEFINE_enum(
    "split", "fewshot", ["fewshot", "vanilla", "csv", "presplit"],
    "fewshot: classes by seed; vanilla: images of every class by seed; csv: what train.csv, "
    "val.csv, test.csv list; presplit: folders or files called train, val, test.",
)  # fmt: skip
_NUM_CLASSES = flags.DEFINE_list(
    "num_classes", "64,16,20", "fewshot: of train, val, test; numbers, fractions of all (0.2), "
    "and `rest` for one of them. They count the classes of --input; with --test_input, 0 for test.",
)  # fmt: skip
_IMAGES_PER_CLASS = flags.DEFINE_list(
    "images_per_class", "500,100", "vanilla: of train, test; or of train, val, test."
)
_SEED = flags.DEFINE_integer("seed", 0, "Decides splits and episodes.", 0, 2**63 - 1)

_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 0, "Height and width in pixels; 0: as the images are.", lower_bound=0
)
_RESIZE = flags.DEFINE_enum(
    "resize", "center_crop", ["center_crop", "squash", "pad"],
    "To a square: its centre; all of it, distorted; all of it, on a square of --background.",
)  # fmt: skip
_CHANNELS = flags.DEFINE_enum("channels", "3", ["3", "1"], "3: RGB, 1: greyscale.")
_BACKGROUND = flags.DEFINE_string(
    "background", "white", "Colour behind transparent pixels, and beside padded images."
)
_FORMAT = flags.DEFINE_enum(
    "format", "auto", ["auto", "jpeg", "png", "webp"],
    "Of stored images. auto: original bytes where nothing changes, JPEG elsewhere.",
)  # fmt: skip
_QUALITY = flags.DEFINE_integer("quality", 95, "Of JPEG and WebP.", 1, 100)
_DUPLICATES = flags.DEFINE_enum(
    "duplicates", "drop", ["drop", "keep"], "Pixel-identical images within a class."
)
_SHARED_DUPLICATES = flags.DEFINE_enum(
    "shared_duplicates", "keep", ["keep", "first", "none"],
    "Pixel-identical images of different classes or splits. keep: all of them; first: the one "
    "that is first in the order train, val, test; none: none of them.",
)  # fmt: skip
_MAX_BAD = program.define_float(
    "max_bad_fraction", 0.01, "Of files that cannot be used; more stop the conversion.", 0, 1
)
_DROP_SMALL = flags.DEFINE_bool(
    "drop_small_classes", False, "Leave out classes of fewer than shots + 1 images."
)

_SHOTS = flags.DEFINE_integer(
    "shots", 5, "Supports of an episode; 0: the target itself.", lower_bound=0
)
_SETS = flags.DEFINE_integer(
    "sets_per_class", 100, "Sets of shots + 1 images; each image of a set is a target once.",
    1, 10**6,
)  # fmt: skip

_SHARD_MB = program.define_float("shard_mb", 64, "Size of an image file, about.", 0.001, 1e6)
_MAX_FILE_GB = program.define_float("max_file_gb", 20, "No file grows past this.", 1e-6, 1e6)
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "Processes.", lower_bound=1)
_RUNNER = flags.DEFINE_enum("runner", "local", ["local", "beam"], "Who runs the tasks.")
_BEAM_ARGS = flags.DEFINE_string("beam_args", "", "Flags of Beam, in one string.")

# Flags that decide the output, and so may not change when a conversion goes on.
_DECIDING = (
    "input", "test_input", "csv", "class_depth", "image_column", "label_column", "split",
    "num_classes", "images_per_class", "seed", "image_size", "resize", "channels", "background",
    "format", "quality", "duplicates", "shared_duplicates", "shots", "sets_per_class", "shard_mb",
)  # fmt: skip


def main(argv: list[str]) -> None:
    del argv
    location = _OUTPUT_DIR.value
    with (
        owned(location, f"{location}.lock"),
        storage.new_folder(location, seal="dataset.json") as output,
    ):
        _make_dataset(epath.Path(output))
    print(f"dataset: {location}")


def _make_dataset(output: epath.Path) -> None:
    folder = jobs.ConversionFolder(output.with_name(output.name + ".partial"))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output_dir={output} exists and is not empty: name a new folder")
    _make(folder, _image_options())
    _publish(folder, output)


def _make(folder: jobs.ConversionFolder, options: ImageOptions) -> None:
    if (folder.root / "dataset.json").exists():
        return
    if folder.root.exists() and any(folder.root.iterdir()) and not folder.work.exists():
        raise ConfigError(f"{folder.root} is not of a conversion: move it away first")
    try:
        _convert(folder, options)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OutputError(f"{folder.root}: {system_text(error)}") from None


def _image_options() -> ImageOptions:
    try:
        ImageColor.getrgb(_BACKGROUND.value)
    except ValueError:
        raise ConfigError(f"--background={_BACKGROUND.value}: no colour; try #ff0080") from None
    if _SHARD_MB.value * 1e6 > _MAX_FILE_GB.value * 1e9:
        raise ConfigError(f"--shard_mb={_SHARD_MB.value} is more than --max_file_gb allows")
    return ImageOptions(
        channels=int(_CHANNELS.value),
        image_size=_IMAGE_SIZE.value,
        resize=_RESIZE.value,
        background=_BACKGROUND.value,
        format=_FORMAT.value,
        quality=_QUALITY.value,
    )


def _convert(folder: jobs.ConversionFolder, options: ImageOptions) -> None:
    settings = {name: flags.FLAGS[name].value for name in _DECIDING}
    settings["pillow"] = PIL.__version__  # another version may encode to other bytes
    if folder.job_list.exists():
        jobs.check_same(folder, settings)
        print(f"going on with {folder.root}", flush=True)
    try:
        folder.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir={_OUTPUT_DIR.value}: {system_text(error)}") from None
    try:
        found = _input(folder)
        job_list = _job_list(folder, found, settings, options)
    except BaseException:
        if folder.root.exists() and not folder.job_list.exists():  # it holds no work yet
            folder.root.rmtree()
        raise
    limit = int(_MAX_FILE_GB.value * 1e9)
    task = shards.ConvertShard(str(folder.root), found.reader, options, limit)
    _run(folder, job_list, task)
    while replaced := _too_small(folder, job_list):
        jobs.drop_classes(folder, replaced)
        print(f"{len(replaced)} classes have too few usable images: others take their place")
        job_list = _job_list(folder, found, settings, options)
        _run(folder, job_list, task)
    _finish(folder, job_list)


def _input(folder: jobs.ConversionFolder) -> reading.Input:
    path, columns = storage.local_copy(_INPUT.value), (_IMAGE_COLUMN.value, _LABEL_COLUMN.value)
    depth = _CLASS_DEPTH.value
    found = reading.read_input(path, folder.spool, depth, columns, _lists(path))
    if _TEST_INPUT.value:
        path = storage.local_copy(_TEST_INPUT.value)
        found = reading.with_test_input(found, path, folder.test_spool, depth, columns)
    for note in found.notes:
        print(note)
    return found


def _job_list(
    folder: jobs.ConversionFolder,
    found: reading.Input,
    settings: Mapping[str, Any],
    options: ImageOptions,
) -> jobs.JobList:
    dropped = jobs.dropped_classes(folder)
    dealt = splits.assign(
        found.entries, _splitter(found, dropped), _SHOTS.value, _DROP_SMALL.value, dropped
    )
    notes.print_assignment(dealt, by_classes=_SPLIT.value == "fewshot")
    dealt = dataclasses.replace(dealt, left_out=(*dealt.left_out, *found.rows))
    return jobs.make(folder, dealt, settings, options, int(_SHARD_MB.value * 1e6))


def _too_small(folder: jobs.ConversionFolder, job_list: jobs.JobList) -> dict[str, str]:
    """Returns class -> reason for small classes that unused ones can replace."""
    if not (_DROP_SMALL.value and _SPLIT.value == "fewshot" and job_list.unused_classes):
        return {}
    return finish.small_classes(folder, job_list, _finish_options())


def _lists(path: Path) -> list[Path]:
    if _CSV.value:
        return [storage.local_copy(name) for name in _CSV.value]
    found = [path / f"{name}.csv" for name in layout.SPLITS]
    found = [file for file in found if file.is_file()]
    if _SPLIT.value == "csv" and not found:
        raise ConfigError(f"--split=csv: {path} holds no train.csv; name the lists with --csv")
    return found


def _splitter(
    found: reading.Input, dropped: Collection[str]
) -> Callable[[Sequence[Entry]], splits.Splits]:
    if _SPLIT.value == "fewshot":
        counts, unseen = parse_class_counts(_NUM_CLASSES.value), found.test_classes
        if unseen and counts.wanted[2] != 0:
            raise ConfigError("--test_input is the test split: end --num_classes with 0: rest,16,0")
        return lambda entries: splits.fewshot(entries, counts, _SEED.value, dropped, unseen)
    if found.test_classes:
        raise ConfigError(f"--test_input goes with --split=fewshot, not {_SPLIT.value}")
    if _SPLIT.value == "vanilla":
        wanted = parse_image_counts(_IMAGES_PER_CLASS.value)
        return lambda entries: splits.vanilla(entries, wanted, _SEED.value)
    return splits.given


def _run(folder: jobs.ConversionFolder, job_list: jobs.JobList, task: shards.ConvertShard) -> None:
    if _RUNNER.value == "beam":
        done = runners.run_beam(task, job_list.shards, _BEAM_ARGS.value)
    else:
        done = runners.run_pool(task, job_list.shards, _WORKERS.value)
    runners.watch(done, job_list.num_images, _MAX_BAD.value)


def _finish_options() -> finish.FinishOptions:
    return finish.FinishOptions(
        shots=_SHOTS.value,
        drop_duplicates=_DUPLICATES.value == "drop",
        shared_duplicates=_SHARED_DUPLICATES.value,
        drop_small_classes=_DROP_SMALL.value,
        draw_episodes=lambda split: episodes.rotating_episodes(
            split, _SHOTS.value, _SETS.value, _SEED.value
        ),
    )


def _finish(folder: jobs.ConversionFolder, job_list: jobs.JobList) -> None:
    finished = finish.finish(folder, job_list, _finish_options())
    info = layout.DatasetInfo(
        image_size=finished.image_size,
        channels=int(_CHANNELS.value),
        splits=finished.splits,
        command=_command(),
        seed=_SEED.value,
        shared_classes=job_list.shared_classes,
        preparation=_image_options().preparation,
    )
    layout.write_dataset_json(folder.root, info)
    notes.print_finished(info, finished, _SHOTS.value, _SETS.value, _SHARED_DUPLICATES.value)


def _command() -> str:
    changed = [flags.FLAGS[name] for name in _DECIDING if flags.FLAGS[name].present]
    return shlex.join(["python", "-m", "data_prep.convert", *(f.serialize() for f in changed)])


def _publish(folder: jobs.ConversionFolder, output: epath.Path) -> None:
    made = layout.read_description(folder.root / "dataset.json").command
    if made != _command():
        raise ConfigError(
            f"{folder.root} is a complete dataset, made by `{made}`: move it away first"
        )
    if folder.work.exists():
        folder.work.rmtree()
    layout.publish(folder.root, output)


if __name__ == "__main__":
    program.run(main)
