"""What a user or a scheduler asks of a training run by a signal: finish the step, save, leave; or leave at once."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mfkit.runtime.distributed import processes

logger = logging.getLogger(__name__)

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Asked:
    """The first of these signals that has come, or None."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def noted() -> Iterator[Asked]:
    """Notes the first of the signals meanwhile; the second ends the process, whatever it is waiting for.

    A thread takes them, since the main one may be in a library for long, waiting for another process. Outside the main
    thread there are no signals to note.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _take) for number in STOPPING}
    thread = threading.Thread(target=_listen, args=(reader, asked), daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        thread.join()
        os.close(reader)


def _take(number: int, frame: object) -> None:
    """In place of Python's own action; the thread has been told."""


def _listen(reader: int, asked: Asked) -> None:
    while data := os.read(reader, 1):
        if data[0] not in STOPPING:
            continue
        if asked.signal is not None:
            os._exit(128 + data[0])
        asked.signal = signal.Signals(data[0])
        if processes().is_main_process:
            logger.warning("%s: stopping after this step; once more stops at once", asked.signal.name)
