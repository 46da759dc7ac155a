"""One thread that computes for all requests: what arrives while it is busy is computed together next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from das3d.detector import Detector, Prediction
from das3d.preparation import PreparedScan


@dataclass(frozen=True)
class _Job:
    detector: Detector
    scan: PreparedScan
    answer: Future[Prediction] = field(default_factory=Future)


class Batches:
    """Scores prepared scans for any number of callers, in their order, as many at once as wait for the same detector.

    No request waits for others to come: an idle service answers a lone part at once, a busy one fills its batches.

    Args:
        most: parts in one batch.
        observe: told the size of every batch.
    """

    def __init__(self, most: int, observe: Callable[[int], None] = lambda size: None) -> None:
        self.most = most
        self._observe = observe
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="das3d batches", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, detector: Detector, scan: PreparedScan) -> Future[Prediction]:
        """The prediction to come. Cancel it where nobody waits for it any more."""
        job = _Job(detector, scan)
        with self._changed:
            if self._closed:
                raise RuntimeError("closed")
            self._waiting.append(job)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """Finish what was submitted, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            self._observe(len(jobs))
            try:
                predictions = jobs[0].detector.predict_prepared([job.scan for job in jobs])
            except Exception as error:  # must reach those who wait, and must not end this thread
                for job in jobs:
                    job.answer.set_exception(error)
                continue
            for job, prediction in zip(jobs, predictions, strict=True):
                job.answer.set_result(prediction)

    def _next(self) -> list[_Job]:
        # The oldest job and those that share its detector; none once closed and done.
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return []
                detector = self._waiting[0].detector
                chosen = [job for job in self._waiting if job.detector is detector][: self.most]
                self._waiting = deque(job for job in self._waiting if not any(job is other for other in chosen))
            if wanted := [job for job in chosen if job.answer.set_running_or_notify_cancel()]:
                return wanted
