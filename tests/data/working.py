"""A program with input workers: reads some batches, prints "ready", and waits.

python -m tests.data.working DATASET BATCH_SIZE
"""

import signal

from fsdit import program
from fsdit.config import Config, DataConfig


def main(argv):
    from fsdit.data.pipeline import host_batches, training_examples

    data = DataConfig(dataset_dir=argv[1], shots=5, source="sampled", workers=2)
    size = int(argv[2])
    batches = host_batches(
        training_examples(Config(data=data)), range(size), size, 0, 100, data, lambda batch: batch
    )
    for _ in range(4):  # from both workers
        next(batches)
    print("ready", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    program.run(main, takes_arguments=True)
