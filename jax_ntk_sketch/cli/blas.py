"""Threads of NumPy's and SciPy's linear algebra on the host."""

import contextlib

__all__ = ["one_thread_if_small"]

# Up to this size a second thread saves less than a second per solve.
_SMALL = 2000


def one_thread_if_small(n: int) -> contextlib.AbstractContextManager:
    """Within it, matrices being n x n, BLAS uses one thread where n is small.

    Its threads wait for each other actively at every block, so that on a machine
    with other work solving n = 1400 was 30 times slower with two threads than with
    one. Needs threadpoolctl, which comes with scikit-learn; without it, nothing.
    """
    if n > _SMALL:
        return contextlib.nullcontext()
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    return threadpool_limits(1, user_api="blas")
