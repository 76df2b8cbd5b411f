"""Linear algebra of NumPy, SciPy and scikit-learn on the host, in one thread.

Threads of OpenBLAS wait for each other by spinning. Where another program has the cores, a
second thread makes a decomposition or a fit ten to a hundred times slower.
"""

import contextlib
import functools

from threadpoolctl import ThreadpoolController


def one_blas_thread() -> contextlib.AbstractContextManager:
    """Within it, BLAS has one thread in this process."""
    return _controller().limit(limits=1, user_api="blas")


@functools.cache
def _controller() -> ThreadpoolController:
    """Finding the libraries takes 20 ms, and finds those that are loaded: SciPy has its own."""
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()
