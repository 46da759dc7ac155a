"""One thread that computes for all requests: what arrives while it is busy is computed together next."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from das3d.detector import Detector, Prediction
from das3d.errors import one_line
from das3d.preparation import PreparedScan
from das3d.window import Window

log = logging.getLogger("das3d.service")
RETRY_SECONDS = 10.0  # between tries of networks that failed


def warm_up(detector: Detector) -> None:
    """Compute once, so that the first part does not wait for what engines do at their first call."""
    side = detector.settings.preparation.size
    nothing = np.zeros((side, side), dtype=bool)
    scan = PreparedScan(
        "warm-up", np.zeros((side, side, 3), np.uint8), np.ones((side, side), np.float32), nothing, nothing, None,
        Window.square(0, 0, side, (side, side)),
    )  # fmt: skip
    detector.predict_prepared([scan])


class ComputeError(Exception):
    """The networks could not compute a part. Says why in one line, for the client."""


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


@dataclass
class _Networks:
    """The networks of one detector.

    Attributes:
        most: parts in one batch.
        failure: the last one; None once they have computed since.
        retry_at: when to try again what failed, by the monotonic clock.
    """

    detector: Detector
    most: int
    failure: Failure | None = None
    retry_at: float = 0.0


@dataclass(frozen=True)
class _Job:
    networks: _Networks
    scan: PreparedScan
    answer: Future[Prediction] = field(default_factory=Future)


class Batches:
    """Scores prepared scans for any number of callers, in their order, as many at once as wait for the same detector.

    No request waits for others to come: an idle service answers a lone part at once, a busy one fills its batches.

    The parts of a batch that fails are computed one by one, so that a bad one spoils no other. Where all of them can be,
    there were too many for the memory, and later batches have half as many. Networks that fail on a lone part are tried
    again with the warm-up scan, at once and then now and then, whatever else is computed, until they compute: the failure
    may have been the part's, and a GPU may come back.

    Args:
        most: parts in one batch.
        observe: told the size of every batch.
    """

    def __init__(self, most: int, observe: Callable[[int], None] = lambda size: None) -> None:
        self._most = most
        self._observe = observe
        self._networks: dict[int, _Networks] = {}  # by the id of their detector, which has no hash
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._begun: float | None = None  # when the batch that is under way was begun
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

    @property
    def failures(self) -> list[Failure]:
        """The last one of each detector that has computed nothing since."""
        with self._changed:
            return [networks.failure for networks in self._networks.values() if networks.failure is not None]

    def submit(self, detector: Detector, scan: PreparedScan) -> Future[Prediction]:
        """The prediction to come, or ComputeError. Cancel it where nobody waits for it any more."""
        with self._changed:
            if self._closed:
                raise RuntimeError("closed")
            networks = self._networks.setdefault(id(detector), _Networks(detector, self._most))
            job = _Job(networks, scan)
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
        while (work := self._next()) is not None:
            networks, jobs = work
            if jobs:
                self._compute(networks, jobs)
            else:
                self._try_again(networks)
            self._begun = None

    def _compute(self, networks: _Networks, jobs: list[_Job]) -> None:
        if (reason := self._answer(networks, jobs)) is None:
            return
        if len(jobs) == 1:
            self._fail(networks, jobs[0], reason)
            return
        log.warning("a batch of %d parts cannot be computed, each is tried alone: %s", len(jobs), reason)
        spoiled = False
        for job in jobs:
            if spoiled and networks.failure is not None:  # not even the warm-up scan can be computed
                job.answer.set_exception(_told(networks.failure.reason))
            elif (reason := self._answer(networks, [job])) is not None:
                spoiled = True
                self._fail(networks, job, reason)
        if not spoiled:
            networks.most = len(jobs) // 2
            log.warning("each could be computed alone: from now on batches have %d parts at most", networks.most)

    def _answer(self, networks: _Networks, jobs: list[_Job]) -> str | None:
        # Why not, in words: the error itself would hold the memory that the next try may need.
        self._observe(len(jobs))
        self._begun = time.monotonic()
        try:
            predictions = networks.detector.predict_prepared([job.scan for job in jobs])
        except Exception as error:  # must reach those who wait, and must not end this thread
            if len(jobs) == 1:
                log.exception("%s cannot be computed", jobs[0].scan.name)
            return _reason(error)
        self._has_computed(networks)
        for job, prediction in zip(jobs, predictions, strict=True):
            job.answer.set_result(prediction)
        return None

    def _fail(self, networks: _Networks, job: _Job, reason: str) -> None:
        tries = 0 if networks.failure is None else networks.failure.tries
        networks.failure = Failure(networks.detector, reason, tries)
        job.answer.set_exception(_told(reason))
        self._try_again(networks)

    def _try_again(self, networks: _Networks) -> None:
        self._begun = time.monotonic()
        try:
            warm_up(networks.detector)
        except Exception as error:
            tries = 1 if networks.failure is None else networks.failure.tries + 1
            networks.failure = Failure(networks.detector, _reason(error), tries)
            networks.retry_at = time.monotonic() + RETRY_SECONDS
            log.error("the networks cannot compute, tried %d times: %s", tries, networks.failure.reason)
        else:
            self._has_computed(networks)

    def _has_computed(self, networks: _Networks) -> None:
        if networks.failure is not None:
            log.warning("the networks compute again after: %s", networks.failure.reason)
            networks.failure = None

    def _next(self) -> tuple[_Networks, list[_Job]] | None:
        # The oldest job and those that share its networks; networks alone where it is time to try them again, and None once
        # closed and done.
        while True:
            with self._changed:
                while True:
                    failing = [one for one in self._networks.values() if one.failure is not None and not self._closed]
                    first = min(failing, key=lambda one: one.retry_at, default=None)
                    if first is not None and first.retry_at <= time.monotonic():
                        return first, []
                    if self._waiting:
                        break
                    if self._closed:
                        return None
                    self._changed.wait(None if first is None else first.retry_at - time.monotonic())
                networks = self._waiting[0].networks
                chosen = [job for job in self._waiting if job.networks is networks][: networks.most]
                self._waiting = deque(job for job in self._waiting if not any(job is other for other in chosen))
            if wanted := [job for job in chosen if job.answer.set_running_or_notify_cancel()]:
                return networks, wanted


def _told(reason: str) -> ComputeError:
    return ComputeError(f"the networks could not compute this part: {reason}")


def _reason(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 200)
