"""What runs on a worker. It is sent by value: the worker's own package may be missing, or older.

Nothing here may use a name of this package, and none but of the standard library and distributed.
"""

from __future__ import annotations

from typing import Any


def worker_side() -> tuple[type, Any]:
    """Return the plugin's class and the function of a piece.

    Both are made in here because cloudpickle sends what it cannot import with all its code.
    """
    import contextlib
    import os
    import pickle
    import tempfile
    import threading
    import traceback
    from importlib import metadata

    from distributed import WorkerPlugin, get_worker

    def first_free() -> tuple[int, Any]:
        """Return the smallest number that no other live process of this host has, and its lock.

        The system frees the lock of a process that is killed, and the next worker takes its place.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            return 0, None
        folder = os.path.join(tempfile.gettempdir(), f"cpwl-workers-{os.getuid()}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        number = 0
        while True:
            held = open(os.path.join(folder, str(number)), "w")  # noqa: SIM115
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return number, held
            except BlockingIOError:  # another's
                held.close()
                number += 1
            except OSError:  # a file system without locks
                held.close()
                return 0, None

    def place_of(worker: Any, rank: int) -> dict[str, Any]:
        # dask-cuda has given the worker its GPU as the first of CUDA_VISIBLE_DEVICES
        pinned = any(type(p).__module__.startswith("dask_cuda") for p in worker.plugins.values())
        return {
            "address": worker.address,
            "threads": worker.state.nthreads,
            "memory": worker.memory_manager.memory_limit,
            "rank": 0 if pinned else rank,
        }

    class Site(WorkerPlugin):
        """What a worker sets up once, when its first piece comes."""

        def __init__(self, make: bytes, versions: dict[str, str | None]) -> None:
            self.make, self.versions = make, versions

        def setup(self, worker: Any) -> None:
            self.worker, self.function, self.held = worker, None, None
            # one piece at a time: torch has the worker's threads
            self.lock = threading.Lock()

        def teardown(self, worker: Any) -> None:
            self.function = None
            if self.held is not None:
                self.held.close()

        def ready(self) -> Any:
            if self.function is None:
                self.check()
                make = pickle.loads(self.make)
                rank, self.held = first_free()
                try:
                    self.function = make(**place_of(self.worker, rank))
                except BaseException:
                    if self.held is not None:
                        self.held.close()
                    raise
            return self.function

        def check(self) -> None:
            for package, wanted in self.versions.items():
                found = None
                with contextlib.suppress(metadata.PackageNotFoundError):
                    found = metadata.version(package)
                if found != wanted:
                    raise ImportError(
                        f"Expected {package} {wanted} as where the run was started, got "
                        f"{found or 'none'}: install the same versions for the workers "
                        f"(pip install 'cpwl[cluster]' {package}=={wanted})."
                    )

    def piece(name: str, number: int, payload: Any) -> tuple[str, str, Any]:
        """Return what became of a piece, the worker's address, and the result or the error."""
        worker, stage = get_worker(), "setup"
        try:
            site: Any = worker.plugins[name]
            with site.lock:
                function = site.ready()
                stage = "work"
                return "done", worker.address, function(number, payload)
        except Exception as error:
            note = "".join(traceback.format_exception(error))
            try:
                kept = pickle.dumps(error)
                pickle.loads(kept)
            except Exception:  # an error of a kind that cannot be sent
                kept = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
            return stage, worker.address, (kept, note)

    return Site, piece
