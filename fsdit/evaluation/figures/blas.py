"""Linear algebra of NumPy, SciPy and scikit-learn on the host, in one thread.

Threads of OpenBLAS wait for each other by spinning. While another program uses the cores, a
second thread makes a decomposition or a fit ten to a hundred times slower.
"""

import contextlib
import functools

from threadpoolctl import ThreadpoolController


def one_blas_thread() -> contextlib.AbstractContextManager:
    """A context in which BLAS uses one thread in this process."""
    return _controller().limit(limits=1, user_api="blas")


@functools.cache
def _controller() -> ThreadpoolController:
    """Controls every BLAS library of this process. Made once, because that takes 20 ms.

    It finds the libraries that are loaded by then, so SciPy's own is loaded first.
    """
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()
