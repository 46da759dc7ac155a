"""One thread that computes for all requests: what arrives while it is busy is computed together next."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np

from das3d.detector import Detector, Prediction
from das3d.errors import one_line
from das3d.preparation import PreparedScan, Window

log = logging.getLogger("das3d.service")
RETRY_SECONDS = 10.0  # between tries of networks that failed, while no part comes


def warm_up(detector: Detector) -> None:
    """Compute once, so that the first part does not wait for what engines do at their first call."""
    side = detector.settings.preparation.size
    nothing = np.zeros((side, side), dtype=bool)
    scan = PreparedScan(
        "warm-up", np.zeros((side, side, 3), np.uint8), np.ones((side, side), np.float32), nothing, nothing, None,
        Window(0, 0, side, (side, side)),
    )  # fmt: skip
    detector.predict_prepared([scan])


@dataclass(frozen=True)
class _Job:
    detector: Detector
    scan: PreparedScan
    answer: Future[Prediction] = field(default_factory=Future)


@dataclass(frozen=True)
class Failure:
    """Networks that could not compute and have computed nothing since.

    Attributes:
        detector: whose networks they are.
        reason: what the engine said last.
        tries: with the warm-up scan, all in vain.
    """

    detector: Detector
    reason: str
    tries: int = 0


class Batches:
    """Scores prepared scans for any number of callers, in their order, as many at once as wait for the same detector.

    No request waits for others to come: an idle service answers a lone part at once, a busy one fills its batches.
    Networks that failed are tried again with the warm-up scan, at once and then now and then, until they compute: the
    failure may have been the part's, and a GPU may come back.

    Args:
        most: parts in one batch.
        observe: told the size of every batch.

    Attributes:
        failure: the last one; None once the same networks have computed since.
    """

    def __init__(self, most: int, observe: Callable[[int], None] = lambda size: None) -> None:
        self.most = most
        self._observe = observe
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._begun: float | None = None  # when the batch that is under way was begun
        self.failure: Failure | None = None
        self._thread = threading.Thread(target=self._work, name="das3d batches", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy(self) -> float:
        """Seconds since the batch that is under way was begun; 0 where none is."""
        begun = self._begun
        return 0.0 if begun is None else time.monotonic() - begun

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
        while (jobs := self._next()) is not None:
            self._begun = time.monotonic()
            if jobs:
                self._compute(jobs)
            elif self.failure is not None:
                self._try_again(self.failure)
            self._begun = None

    def _compute(self, jobs: list[_Job]) -> None:
        detector = jobs[0].detector
        self._observe(len(jobs))
        try:
            predictions = detector.predict_prepared([job.scan for job in jobs])
        except Exception as error:  # must reach those who wait, and must not end this thread
            tries = 0 if self.failure is None else self.failure.tries
            self.failure = Failure(detector, _reason(error), tries)
            for job in jobs:
                job.answer.set_exception(error)
            self._try_again(self.failure)
            return
        self._has_computed(detector)
        for job, prediction in zip(jobs, predictions, strict=True):
            job.answer.set_result(prediction)

    def _try_again(self, failure: Failure) -> None:
        try:
            warm_up(failure.detector)
        except Exception as error:
            self.failure = replace(failure, reason=_reason(error), tries=failure.tries + 1)
            log.error("the networks cannot compute, tried %d times: %s", self.failure.tries, self.failure.reason)
        else:
            self._has_computed(failure.detector)

    def _has_computed(self, detector: Detector) -> None:
        if self.failure is not None and self.failure.detector is detector:
            log.warning("the networks compute again after: %s", self.failure.reason)
            self.failure = None

    def _next(self) -> list[_Job] | None:
        # The oldest job and those that share its detector; none where it is time to try again networks that failed, and
        # None once closed and done.
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    in_time = self._changed.wait(None if self.failure is None else RETRY_SECONDS)
                    if not in_time and not self._waiting and not self._closed:
                        return []
                if not self._waiting:
                    return None
                detector = self._waiting[0].detector
                chosen = [job for job in self._waiting if job.detector is detector][: self.most]
                self._waiting = deque(job for job in self._waiting if not any(job is other for other in chosen))
            if wanted := [job for job in chosen if job.answer.set_running_or_notify_cancel()]:
                return wanted


def _reason(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 200)
