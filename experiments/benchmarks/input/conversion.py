"""Measures what a conversion costs above the bare work on its images, and the memory it needs.

    python -m experiments.benchmarks.input.conversion --num_images=50000

Both sides read the same JPEG photos of 500 x 375, crop and resize them to 256 x 256 and encode
them. The bare side is as many processes as the conversion has workers, on `--bare_images` of the
files; the other is the program from its start to its end. Memory is the largest total, over the
program and its workers, of their private memory and their part of what they share. On a shared
machine, trust the ratio of processor time.
"""

import io
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from absl import flags
from PIL import Image

from experiments.benchmarks.input.photos import make_photos
from fsdit import program

_IMAGES = flags.DEFINE_integer("num_images", 10_000, "Files to convert.")
_BARE = flags.DEFINE_integer("bare_images", 4_000, "Files of the bare side, before and after.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes of each side.")


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photos"
        files = make_photos(source, _IMAGES.value)
        before, cpu_before = bare(files[: _BARE.value])
        seconds, cpu, memory = convert(source, Path(folder) / "dataset")
        after, cpu_after = bare(files[: _BARE.value])
    rate = len(files) / seconds
    baseline = 2 / (1 / before + 1 / after)
    cpu_bare, cpu = (cpu_before + cpu_after) / 2 * 1e3, cpu / len(files) * 1e3
    print(f"bare: {before:.1f} and {after:.1f} images/s in {_WORKERS.value} processes")
    print(f"conversion: {rate:.1f} images/s, {rate / baseline:.3f} of bare, start-up included")
    print(f"processor time: {cpu:.2f} ms an image, bare {cpu_bare:.2f}: {cpu_bare / cpu:.3f}")
    print(f"peak memory: {memory / 1e6:.0f} MB for {len(files)} images")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def bare(files: list[Path]) -> tuple[float, float]:
    """Returns images a second of bare processes, without their start, and CPU seconds an image."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(_WORKERS.value + 1)
    times = context.SimpleQueue()
    processes = [
        context.Process(
            target=decode_resize_encode, args=(files[i :: _WORKERS.value], barrier, times)
        )
        for i in range(_WORKERS.value)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - start
    return len(files) / seconds, sum(times.get() for _ in processes) / len(files)


def decode_resize_encode(files: list[Path], barrier, times) -> None:
    barrier.wait()
    start = time.process_time()
    for path in files:
        with Image.open(path) as image:
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (left, top, left + side, top + side)
            small = image.convert("RGB").resize((256, 256), Image.Resampling.LANCZOS, box=box)
        small.save(io.BytesIO(), "JPEG", quality=95, subsampling=0)
    times.put(time.process_time() - start)


def convert(source: Path, output: Path) -> tuple[float, float, int]:
    """Converts. Returns seconds, seconds of processor time, and peak bytes of memory."""
    command = [
        *(sys.executable, "-m", "data_prep.convert", f"--input={source}"),
        *(f"--output_dir={output}", "--num_classes=64,16,20", "--image_size=256"),
        *(f"--workers={_WORKERS.value}", "--duplicates=keep", "--drop_small_classes"),
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = [0]
    watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid), peak))
    watcher.start()
    if process.wait():
        raise SystemExit("the conversion failed")
    seconds = time.perf_counter() - start
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, peak[0]


def watch(program: psutil.Process, peak: list[int]) -> None:
    while program.is_running() and program.status() != psutil.STATUS_ZOMBIE:
        total = 0
        try:
            for process in (program, *program.children(recursive=True)):
                total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        peak[0] = max(peak[0], total)
        time.sleep(0.2)


if __name__ == "__main__":
    program.run(main)
