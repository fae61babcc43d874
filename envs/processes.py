"""Processes that leave Ctrl-C to the one that started them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def without_sigint() -> Iterator[None]:
    """Let processes that are spawned inside never see SIGINT.

    A terminal sends it to every process at once; the one that the user started answers it, and
    stops the others when their work is saved. A blocked signal stays blocked in a spawned process,
    whereas a handler could be set there only after the imports.
    """
    # multiprocessing starts this with its first process, and unblocks SIGINT in passing.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
