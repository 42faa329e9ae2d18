"""A graceful stop: on the first signal a training finishes its step, saves and ends; the second ends it at once."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mfkit.runtime.distributed import processes

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """The first of these signals that has come, or None."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """Records the first signal meanwhile; the second ends the process, whatever it is waiting for.

    A thread receives them, since the main one may be in a library for long, waiting for another process. Outside the
    main thread there are no signals to receive.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # In place of Python's own action; the thread has the signal's number.
    before = {number: signal.signal(number, lambda number, frame: None) for number in STOP_SIGNALS}
    thread = threading.Thread(target=_listen, args=(reader, request), daemon=True)
    thread.start()
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        thread.join()
        os.close(reader)


def _listen(reader: int, request: StopRequest) -> None:
    while data := os.read(reader, 1):
        if data[0] not in STOP_SIGNALS:
            continue
        if request.signal is not None:
            os._exit(128 + data[0])
        request.signal = signal.Signals(data[0])
        if processes().is_main_process:
            logger.warning("%s: stopping after this step; once more stops at once", request.signal.name)
