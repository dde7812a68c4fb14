"""Workers as Ray actors, on this machine or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from avtool import allocator
from avtool.batch.crew import Crew, Death, Handle, Message
from avtool.batch.jobs import Hello, Job, Outcome, WorkerSpec
from avtool.batch.local import default_workers, thread_variables
from avtool.errors import AvtoolError, DeviceError, UsageError

OBJECT_STORE_BYTES = 80 << 20  # of a cluster started here: paths and outcomes of a few kB pass through it, no frames


class RayPool(Crew):
    """Ray Core actors: one for each GPU, or one for each processor.

    Args:
        workers: how many; None: as many as the cluster has GPUs, or processors for.
        address: of a running cluster; None: one on this machine, for this run alone.

    Raises:
        UsageError: Ray is not installed.
        DeviceError: there is no cluster at the address.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        super().__init__(workers or 1)
        self._given, self._address = workers, address
        self._ours = False  # the cluster
        self._gpu_each = 0

    def start(self, spec: WorkerSpec, files: int = 1, stop: Callable[[], bool] = lambda: False) -> Hello:
        """Connects, then as `Crew.start`."""
        self._connect()
        import ray

        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if spec.settings.device in ("auto", "cuda") else 0
        self._gpu_each = 1 if gpus else 0
        self.workers = self._given or gpus or max(1, int(resources.get("CPU", 1)) // spec.threads)
        return super().start(spec, files, stop)

    def close(self) -> None:
        """Ends the actors, and the cluster if it was started here."""
        super().close()
        if self._ours:
            import ray

            ray.shutdown()
            self._ours = False

    def _is_counted(self, spec: WorkerSpec) -> bool:
        return True

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # its own default is 15: behind everything else
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "Ray is not installed", str(error), "pip install 'avtool[ray]', or --engine local"
            ) from None
        if ray.is_initialized():
            return
        common = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
        here = {"num_cpus": max(self._given or 0, default_workers()), "object_store_memory": OBJECT_STORE_BYTES}
        try:
            ray.init(**({**common, **here} if self._address is None else {**common, "address": self._address}))
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise DeviceError(
                "there is no Ray cluster to work on", _line(error), "--address, or --engine local"
            ) from None
        self._ours = True
        with suppress(AttributeError):  # Ray prints what the scheduler knows and says itself, on standard output
            ray._private.worker.print_to_stdstream = lambda *_, **__: None

    def _launch(self, spec: WorkerSpec, index: int) -> Handle:
        return _Actor(spec, self._gpu_each)

    def _poll(self, handles: Sequence[Handle], timeout: float) -> list[tuple[Handle, Message]]:
        import ray

        actors = {h.pending: h for h in handles if isinstance(h, _Actor) and h.pending is not None}
        if not actors:
            return []
        ready, _ = ray.wait(list(actors), num_returns=1, timeout=timeout)
        if ready:  # whatever else is there
            ready, _ = ray.wait(list(actors), num_returns=len(actors), timeout=0)
        return [(actors[reference], actors[reference].hear(reference)) for reference in ready]


class _Actor:
    """An actor and the one answer that is awaited from it."""

    def __init__(self, spec: WorkerSpec, gpus: int) -> None:
        import ray

        remote = ray.remote(_Remote)
        options = {"num_cpus": spec.threads, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        self._actor: Any = remote.options(**options, max_concurrency=3).remote(spec)
        self.pending: Any = self._actor.hello.remote()
        self._node = ""

    def run(self, job: Job) -> None:
        self.pending = self._actor.run.remote(job)

    def ahead(self, job: Job) -> None:
        self._actor.ahead.remote(job)

    def drop(self, job: Job) -> None:
        self._actor.drop.remote(job)

    def dismiss(self) -> None:
        self.kill()

    def kill(self) -> None:
        import ray

        ray.kill(self._actor)
        self.pending = None

    def hear(self, reference: Any) -> Message:
        import ray
        from ray.exceptions import RayActorError

        try:
            node, message = ray.get(reference)
        except RayActorError as error:
            self.pending = None
            return Death("the worker crashed or was killed", node_lost=self._is_node_lost(error))
        self.pending, self._node = None, node
        assert isinstance(message, Hello | Outcome | AvtoolError)
        return message

    def _is_node_lost(self, error: Exception) -> bool:
        import ray

        return "node" in _line(error) or any(n["NodeID"] == self._node and not n["Alive"] for n in ray.nodes())


class _Remote:
    """What runs on the cluster: a worker, and where it is. Answers are pairs (node, message)."""

    def __init__(self, spec: WorkerSpec) -> None:
        import ray

        os.environ.update(thread_variables(spec.threads))  # before torch is loaded
        allocator.keep_memory()
        from avtool.batch.worker import make

        self._node = ray.get_runtime_context().get_node_id()
        self._worker = make(spec)

    def hello(self) -> tuple[str, Hello | AvtoolError]:
        self._worker.begin()
        return self._node, self._worker.hello()

    def run(self, job: Job) -> tuple[str, Outcome]:
        return self._node, self._worker.run(job)

    def ahead(self, job: Job) -> None:
        self._worker.ahead(job)

    def drop(self, job: Job) -> None:
        self._worker.drop(job)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
