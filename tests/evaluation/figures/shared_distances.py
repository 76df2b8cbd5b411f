"""One of two processes that compute nearest neighbours together, each with two devices."""

import sys

import numpy as np

from fsdit.config import Config
from fsdit.evaluation.figures.distances import episode_distances, k_nearest
from fsdit.parallel import processes, sharding


def main(address: str, process: str) -> None:
    processes.start(address, 2, int(process))
    everywhere = sharding.make_mesh(Config())
    assert everywhere.size == 4
    rows = np.random.default_rng(0).normal(size=(30, 3, 4))
    found, alone = (k_nearest(rows[:21], rows, 3, mesh=m, tile=5) for m in (everywhere, None))
    assert (found.index == alone.index).all()
    assert (found.index[:, 0] == np.arange(21)).all()
    within = [episode_distances(rows, rows[:, :2], mesh=m, tile=7) for m in (everywhere, None)]
    np.testing.assert_allclose(*within, rtol=1e-12)
    processes.stop()
    print("agreed", found.index.sum())


if __name__ == "__main__":
    main(*sys.argv[1:])
