"""Computes features and latents of a dataset's images once, so that training can read them.

    python -m data_prep.encode --dataset_dir=datasets/mini \\
      --encoder=google/siglip2-base-patch16-224 --vae=stabilityai/sd-vae-ft-mse

Features of each image, and latents of each image and of its mirror image, are written beside
the images, one file for each file of images. If this is stopped at any moment, the same
command goes on and keeps the files that are complete. Several processes can share the work, in
a folder that all of them see. Do not rebuild episodes meanwhile.
"""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from absl import flags
from tqdm import tqdm

from data_prep.encoding import tasks
from data_prep.encoding.outputs import Output, features, latents
from fsdit import program, storage
from fsdit.data import layout
from fsdit.data.images.filenames import is_plain_name
from fsdit.errors import ConfigError
from fsdit.parallel import processes, sharding
from fsdit.program.ownership import owned

_DATASET_DIR = program.define_path("dataset_dir", None, "The dataset to add to.", required=True)
_ENCODER = program.define_path("encoder", None, "SigLIP, SigLIP 2, DINOv2: directory or hub id.")
_TOKENS = flags.DEFINE_bool("tokens", True, "Keep an image's tokens beside its pooled features.")
_VAE = program.define_path("vae", None, "AutoencoderKL: a directory in the hub's layout or hub id.")
_VAE_SUBFOLDER = flags.DEFINE_string("vae_subfolder", "", "'vae' in a pipeline's checkpoint.")
_NAME = flags.DEFINE_string("name", None, "Of the features; default: last part of --encoder.")
_VAE_NAME = flags.DEFINE_string("vae_name", None, "Of the latents; default: last part of --vae.")
_DTYPE = flags.DEFINE_enum("dtype", "float16", ["float16", "bfloat16"], "What is stored.")
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype", "float32", ["float32", "bfloat16"], "What the networks compute in."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 32, "Images at once in each process; rounded up to its devices.", lower_bound=1
)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process.")


def main(argv: list[str]) -> None:
    del argv
    if not (_ENCODER.value or _VAE.value):
        raise ConfigError("--encoder or --vae, or both: name what to encode with")
    names = _name("name", "encoder"), _name("vae_name", "vae")
    location = _DATASET_DIR.value
    if storage.is_remote(location) and (_NUM_PROCESSES.value or 1) > 1:
        raise ConfigError("--num_processes: a dataset in a bucket is encoded by one process")
    owner = owned(location) if storage.is_remote(location) else contextlib.nullcontext()
    with owner, storage.changed_folder(location) as directory:
        _encode_dataset(directory, names)
    if processes.is_main_process():
        print(f"dataset: {location}")


def _encode_dataset(directory: Path, names: tuple[str, str]) -> None:
    info = layout.read_dataset_info(directory)
    outputs = _outputs(info, *names)
    folder = tasks.EncodingFolder(directory)
    jobs = tasks.tasks(directory, info)
    is_left = not tasks.is_recorded(folder, info, outputs)
    if is_left:
        _check_names(info, outputs)
    processes.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing to save: complete files are kept
    # The main process owns the folder for all processes of the job; the others wait for it.
    with owned(directory) if processes.is_main_process() else contextlib.nullcontext():
        processes.wait_for_all("owned")
        if is_left:
            folder.begin(info, outputs, _COMPUTE_DTYPE.value)
            _encode(folder, info, outputs, jobs)
            processes.wait_for_all("encoded")
        if processes.is_main_process():
            if is_left:
                tasks.finish(folder, outputs, jobs)
            else:
                tasks.remove(folder)
    processes.stop()


def _name(flag: str, location_flag: str) -> str:
    """Returns the name for the files: the flag's, or the last part of the location."""
    given, location = flags.FLAGS[flag].value, flags.FLAGS[location_flag].value
    if location is None:
        if given is not None:
            raise ConfigError(f"--{flag}={given} is for --{location_flag}: give that too")
        return ""
    name = layout.default_name(location) if given is None else given
    if not is_plain_name(name):
        raise ConfigError(
            f"--{flag}={name}: a name for files is of letters, digits, '.', '_' and '-'; "
            f"give another with --{flag}"
        )
    return name


def _outputs(info: layout.DatasetInfo, name: str, vae_name: str) -> list[Output]:
    found = []
    if _ENCODER.value:
        found.append(
            features(_ENCODER.value, name, _TOKENS.value, _DTYPE.value, _COMPUTE_DTYPE.value)
        )
    if _VAE.value:
        found.append(
            latents(
                _VAE.value,
                _VAE_SUBFOLDER.value,
                vae_name,
                info,
                _DTYPE.value,
                _COMPUTE_DTYPE.value,
            )
        )
    return found


def _check_names(info: layout.DatasetInfo, outputs: Sequence[Output]) -> None:
    """Raises ConfigError for an output that the dataset has already."""
    for output in outputs:
        if old := tasks.described(info, output.kind):
            flag = "name" if output.kind.startswith("features-") else "vae_name"
            what = "already there" if old == output.info else f"there, but otherwise made: {old}"
            raise ConfigError(
                f"--dataset_dir={_DATASET_DIR.value}: {output.kind} is {what}; give another name "
                f"with --{flag}"
            )


def _encode(
    folder: tasks.EncodingFolder,
    info: layout.DatasetInfo,
    outputs: Sequence[Output],
    jobs: Sequence[tasks.EncodingTask],
) -> None:
    """Encodes the files of this process: every process_count-th, from process_index on."""
    mine = jobs[jax.process_index() :: jax.process_count()]
    devices = jax.local_device_count()
    batch_size = sharding.round_up(_BATCH_SIZE.value, devices)
    silent = None if processes.is_main_process() else True  # None: silent without a terminal
    for output in outputs:
        left = [task for task in mine if not folder.is_done(task, output.kind)]
        images = sum(len(task.images) for task in left)
        started = time.monotonic()
        with (
            ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
            tqdm(total=images, desc=output.kind, unit="image", disable=silent) as bar,
        ):
            tasks.Encoding(folder, info, batch_size, threads, bar.update).run(output, left)
        if processes.is_main_process() and left:
            rate = images / (time.monotonic() - started)
            print(f"{output.kind}: {images} images by process 0, {rate:.1f} images/s", flush=True)


if __name__ == "__main__":
    program.run(main)
