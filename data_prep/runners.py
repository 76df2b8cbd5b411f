"""Who runs the tasks: a pool of processes here, or Apache Beam anywhere."""

import concurrent.futures
import itertools
import multiprocessing
import multiprocessing.connection
import os
import shlex
import signal
import threading
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures.process import BrokenProcessPool

from data_prep.plan import Shard
from data_prep.shards import ConvertShard, Summary
from fsdit.errors import ConfigError, DataError

_AHEAD = 2  # tasks a worker that are handed out: a bound on what waits in queues


def run_pool(
    task: ConvertShard, shards: Sequence[Shard], workers: int
) -> Generator[Summary, None, None]:
    """Summaries as tasks end, in any order. Raises what a task raises, at once."""
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker)
    waiting = iter(shards)
    try:
        pending = {pool.submit(task, s) for s in itertools.islice(waiting, _AHEAD * workers)}
        while pending:
            done, pending = concurrent.futures.wait(pending, return_when="FIRST_COMPLETED")
            for future in done:
                yield future.result()
            pending |= {pool.submit(task, s) for s in itertools.islice(waiting, len(done))}
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, perhaps for want of memory: fewer --workers need less; "
            "the same command goes on"
        ) from None
    except BaseException:  # what workers are at is of no use any more
        for worker in multiprocessing.active_children():
            worker.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Workers leave interrupts to the program, and leave when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # Pillow's, about files that are listed in the end
    parent = multiprocessing.parent_process()

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def run_beam(
    task: ConvertShard, shards: Sequence[Shard], arguments: str
) -> Generator[Summary, None, None]:
    """The same, as a Beam pipeline; `arguments` are Beam's own flags in one string.

    The working folder must be one that all of its workers see.
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
