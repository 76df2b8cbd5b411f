"""Running the tasks of a conversion: in a pool of processes here, or by Apache Beam anywhere."""

import contextlib
import shlex
from collections.abc import Generator, Sequence

from tqdm import tqdm

from data_prep import pool
from data_prep.conversion.jobs import Shard
from data_prep.conversion.shards import ConvertShard, Summary
from fsdit.errors import ConfigError, DataError


def run_pool(
    task: ConvertShard, shards: Sequence[Shard], workers: int
) -> Generator[Summary, None, None]:
    """Yields summaries as tasks end, in any order. Raises at once what a task raises."""
    for shard, summary in pool.results(task, shards, workers):
        if summary is None:
            raise DataError(
                f"{shard.file}: a worker process was killed over it twice, for want of memory or "
                "by a file that crashes a decoder: try --workers=1; the same command goes on"
            )
        yield summary


def run_beam(
    task: ConvertShard, shards: Sequence[Shard], arguments: str
) -> Generator[Summary, None, None]:
    """Runs the tasks as a Beam pipeline, then yields their summaries.

    arguments: Beam's own flags in one string. All of its workers must see the conversion
    folder. Raises ConfigError without Beam, and DataError for whatever a task raises.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ConfigError("--runner=beam: install it with pip install 'fsdit[beam]'") from None
    try:
        with beam.Pipeline(options=PipelineOptions(shlex.split(arguments))) as pipeline:
            _ = pipeline | beam.Create(list(shards)) | beam.Reshuffle() | beam.Map(task)
    except Exception as error:
        # A runner wraps what a task raised in its own errors; the last line is the cause.
        raise DataError(f"--runner=beam: {str(error).strip().splitlines()[-1]}") from None
    for shard in shards:
        done = task.finished(shard)
        if done is None:
            raise DataError(
                f"--runner=beam: the pipeline ended without {shard.file}: --output_dir must be a "
                "folder that all of its workers see, and the runner one that waits"
            )
        yield done


def watch(done: Generator[Summary, None, None], num_images: int, max_bad_fraction: float) -> None:
    """Runs the tasks to their end, with a progress bar.

    done: from one of the functions above. num_images: of all tasks. Raises DataError as soon as
    too many of the images cannot be used.
    """
    skipped, first = 0, ""
    with contextlib.closing(done), tqdm(total=num_images, unit="image", disable=None) as bar:
        for summary in done:
            bar.update(summary.images + summary.skipped)
            skipped += summary.skipped
            first = first or summary.first_skipped
            if skipped > max_bad_fraction * num_images:
                raise DataError(
                    f"{skipped} of {num_images} files cannot be used, more than "
                    f"--max_bad_fraction={max_bad_fraction} allows; one is {first}"
                )
