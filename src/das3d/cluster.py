"""Work shared among machines through Ray, in tasks that can be repeated.

Every task reads and writes files, so data, models and results must lie where all machines see them under one path, and
das3d must be installed on each. A task whose worker dies is given to another one; tasks that are done stay done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from das3d.errors import SettingsError, explained, one_line

T = TypeVar("T")
REPEATS = 3  # times that a task is given to another worker when its own died
LOCAL_STORE = 1 << 27  # bytes of shared memory: tasks pass names and scores, images go through files
AHEAD = 4  # tasks waiting for each processor: enough to keep it busy, few enough to stop soon


class Cluster:
    """Machines that take tasks. Made by `connect`."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def describe(self) -> str:
        """Machines and processors, in words."""
        there = self._ray.cluster_resources()
        machines = sum(node["Alive"] for node in self._ray.nodes())
        gpus = f", {there['GPU']:.0f} GPUs" if there.get("GPU") else ""
        return f"{machines} machine{'s' if machines > 1 else ''}, {there.get('CPU', 0):.0f} processors{gpus}"

    def map(
        self, work: Callable[[T], Any], items: Sequence[T], *, whole_machine: bool = False
    ) -> Iterator[tuple[int, Any, str]]:
        """Do the work on every item and yield (index, result, error) as each is done, in any order.

        Args:
            work: a function that can be pickled. It may be done again for an item whose worker died.
            items: its argument, one a task.
            whole_machine: each task takes a GPU, or all processors of the smallest machine, instead of one processor.

        Yields:
            The result and ""; or None and one line why there is none: the work raised, or its worker died every time.
        """
        remote = self._ray.remote(_work_in).options(max_retries=REPEATS, **self._share(whole_machine))
        shared = self._ray.put(work)
        waiting: dict[Any, int] = {}
        most = max(AHEAD * int(self._ray.cluster_resources().get("CPU", 1)), 2)
        left = iter(enumerate(items))
        try:
            while True:
                for index, item in left:
                    waiting[remote.remote(Path.cwd(), shared, item)] = index
                    if len(waiting) >= most:
                        break
                if not waiting:
                    return
                ready, _ = self._ray.wait(list(waiting), num_returns=1)
                for done in ready:
                    index = waiting.pop(done)
                    try:
                        yield index, self._ray.get(done), ""
                    except self._ray.exceptions.RayError as error:
                        yield index, None, _reason(error)
        finally:
            for task in waiting:
                self._ray.cancel(task, force=True)

    def _share(self, whole_machine: bool) -> dict[str, float]:
        if not whole_machine:
            return {"num_cpus": 1}
        if self._ray.cluster_resources().get("GPU"):
            return {"num_cpus": 1, "num_gpus": 1}
        # Heads are often started without processors, so that they do no work.
        working = [node["Resources"]["CPU"] for node in self._ray.nodes() if node["Alive"] and "CPU" in node["Resources"]]
        return {"num_cpus": min(working, default=1)}


@contextmanager
def connect(address: str, **options: Any) -> Iterator[Cluster]:
    """A Ray cluster: "auto" for the one this machine belongs to, "local" for this machine alone, or HOST:PORT.

    Args:
        address: where.
        options: further ones of `ray.init`.

    Raises:
        MissingPackageError: Ray is not installed.
        SettingsError: there is no cluster at this address.
    """
    with explained("--ray"):
        import ray
    if address == "local":
        options = {"include_dashboard": False, "object_store_memory": LOCAL_STORE, **options}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        raise SettingsError(f"--ray: expected a Ray cluster at {address}, found {one_line(error, 200)}") from None
    try:
        yield Cluster(ray)
    finally:
        ray.shutdown()


def _work_in(folder: Path, work: Callable[[Any], Any], item: Any) -> Any:
    # Relative paths mean to a worker what they mean here.
    os.chdir(folder)
    return work(item)


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None)
    if cause is not None:
        return one_line(f"{type(cause).__name__}: {cause}", 300)
    return one_line(f"its worker died {REPEATS + 1} times ({type(error).__name__})")
