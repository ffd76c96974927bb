"""Work that must not slow down a run: done in batches by a thread of its own, tried again when it fails, and waited for when the process ends."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Final, final

#: Seconds for which what follows at once is collected into one batch.
GATHER_S: Final = 0.2
#: Seconds between two tries after a failure: the first, and the longest.
RETRY_S: Final = (1.0, 30.0)


@final
class Background:
    """Hands what is put in, in order and in batches, to a function in a thread of its own.

    The thread begins with the first item and ends when nothing is left for a while. A batch that fails is handed over again, together with what came
    since, so the function must be able to take the same items twice. `flush` and the end of the process wait for what is left; what fails then is
    tried once more and given up.

    Args:
        work: Takes the items; raises if they are to be handed over again.
        failed: Told about each failure.
        name: Names the thread.
        exit_wait_s: Seconds that the end of the process waits at most.
    """

    def __init__(
        self, work: Callable[[Sequence[object]], None], failed: Callable[[Exception], None], name: str, exit_wait_s: float
    ) -> None:
        self._work, self._failed, self._name, self._exit_wait_s = work, failed, name, exit_wait_s
        self._changed = threading.Condition()
        self._items: list[object] = []
        self._thread: threading.Thread | None = None
        self._busy = False
        self._urgent = False
        self._failures = 0
        self._begun = 0
        self._failed_last = 0

    def put(self, item: object) -> None:
        """Add an item; returns at once."""
        with self._changed:
            self._items.append(item)
            if self._thread is None:
                _waiting_for.add(self)
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything is done, or was tried in vain after this call.

        Returns:
            Whether everything is done.
        """
        with self._changed:
            begun = self._begun
            self._urgent = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._left() or self._failed_last > begun, timeout_s)
            self._urgent = False
            return not self._left()

    def leave(self) -> bool:
        """Wait for as long as the end of the process may wait, and then let go of everything; return whether all was done."""
        done = self.flush(self._exit_wait_s)
        with self._changed:
            self._items.clear()
        return done

    def _left(self) -> bool:
        return bool(self._items) or self._busy

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: bool(self._items), 5.0):
                    # Under the lock, so that nothing is put in that nobody takes out.
                    self._thread = None
                    _waiting_for.discard(self)
                    return
                pause = min(RETRY_S[0] * 2 ** (self._failures - 1), RETRY_S[1]) if self._failures else GATHER_S
                self._changed.wait_for(lambda: self._urgent, pause)
                batch, self._items = self._items, []
                self._busy = True
                self._begun += 1
            error = self._try(batch)
            with self._changed:
                if error is not None:
                    self._items = batch + self._items
                    self._failed_last = self._begun
                self._failures = 0 if error is None else self._failures + 1
                self._busy = False
                self._changed.notify_all()
                if error is not None and self._urgent:
                    # Whoever waits takes note of the failure first, and tries again if wanted.
                    self._changed.wait_for(lambda: not self._urgent, 1.0)

    def _try(self, batch: Sequence[object]) -> Exception | None:
        if not batch:
            return None
        try:
            self._work(batch)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the run must not notice
            self._failed(error)
            return error
        return None


_waiting_for: weakref.WeakSet[Background] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    until = time.monotonic() + max((item._exit_wait_s for item in _waiting_for), default=0.0)
    for item in list(_waiting_for):
        if time.monotonic() < until:
            item.leave()
