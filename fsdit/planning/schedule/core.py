"""What the prediction knows of a chip beyond its published peaks."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Core:
    """The TensorCore of a chip.

    clock: bundles a second. rows_per_cycle: rows of bfloat16 that each matrix unit takes in a
    cycle. ring: bytes a second that a chip sends in a collective along one axis of the slice,
    over two links, each with the one-way bandwidth of a link in "How to Scale Your Model"
    (https://jax-ml.github.io/scaling-book/tpus).

    The clock is not published. It is what the published peak needs of the units whose rows the
    schedules show, with 2 operations for each element of a unit:

        v5e: 197 TFLOP/s = 4 units x 128 x 128 x 2 x 1 row x 1.5 GHz
        v6e: 918 TFLOP/s = 2 units x 256 x 256 x 2 x 2 rows x 1.75 GHz
    """

    clock: float
    rows_per_cycle: float
    ring: float


# By the name of the chip in fsdit.parallel.chips.
CORES = {
    "v5e": Core(clock=1.5e9, rows_per_cycle=1.0, ring=90e9),
    "v6e": Core(clock=1.75e9, rows_per_cycle=2.0, ring=180e9),
}
