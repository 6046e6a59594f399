"""One writer at a time: a lock with its owner, taken over where the owner is gone."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from approx.stores.errors import StoreError, not_written
from approx.stores.folder import Folder, create, get, parsed, put, remove

NAME = "run/lock.json"
_BEAT = 30.0  # seconds between signs of life
_GONE = 2.5  # beats without one, after which an owner on another host is taken for gone


class Lock:
    """The right to write to a store, held within a `with` block.

    Raises
    ------
    StoreError
        Another process holds it, which the message names.
    """

    def __init__(self, at: Folder) -> None:
        self._at = at
        self._own = _owner()
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lock:
        while not self._create():
            found = get(self._at, NAME)
            owner = None if found is None else parsed(found)
            if found is None:  # given back in between
                continue
            alive = _alive_here(owner)
            if self._beats(found, owner) if alive is None else alive:
                raise StoreError(
                    f"Expected to be the only run on {self._at.url}, got one of {_named(owner)}: "
                    "wait until it is done, or stop it and call again."
                )
            warnings.warn(
                f"The run of {_named(owner)} on {self._at.url} is gone without giving it back: "
                "this one goes on in its place.",
                RuntimeWarning,
                stacklevel=4,
            )
            # of two that find the owner gone, `check` stops the one whose lock was removed
            remove(self._at, NAME)
        self._beating.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._over.set()
            self._beating.join()
        finally:  # also where Ctrl-C comes here
            if self._is_own(get(self._at, NAME)):
                remove(self._at, NAME)

    def check(self) -> None:
        """Refuse to go on where another run has taken over, such as after a sleep.

        Raises
        ------
        StoreError
            The lock is another's.
        """
        found = get(self._at, NAME)
        if not self._is_own(found):
            owner = None if found is None else parsed(found)
            raise StoreError(
                f"Expected to be the only run on {self._at.url}, got its lock taken by "
                f"{_named(owner)}: this run stops, and what it wrote is kept."
            )

    def _create(self) -> bool:
        try:
            return create(self._at, NAME, self._text())
        except OSError as error:
            raise not_written(self._at.url, error) from error

    def _is_own(self, found: bytes | None) -> bool:
        owner = None if found is None else parsed(found)
        return isinstance(owner, dict) and owner.get("token") == self._own["token"]

    def _beats(self, found: bytes, owner: Any) -> bool:
        """Watch a lock of another host for a sign of life: clocks of two hosts may differ."""
        warnings.warn(
            f"{_named(owner)} has the lock of {self._at.url}: looking for up to "
            f"{_GONE * _BEAT:.0f} s whether it is alive.",
            RuntimeWarning,
            stacklevel=5,
        )
        end = time.monotonic() + _GONE * _BEAT
        while time.monotonic() < end:
            time.sleep(_BEAT / 30)
            if get(self._at, NAME) != found:
                return True
        return False

    def _beat(self) -> None:
        while not self._over.wait(_BEAT):
            with suppress(OSError):  # a full disk is the run's to tell
                if self._is_own(get(self._at, NAME)):
                    put(self._at, NAME, self._text())

    def _text(self) -> bytes:
        return json.dumps(self._own | {"alive": time.time()}).encode()


def _owner() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "place": _place(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "token": uuid.uuid4().hex,
    }


def _place() -> str | None:
    """Return where numbers of processes mean the same: a boot of a machine, and a container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """Return when a process was started, in ticks since boot: its number is given again later."""
    try:
        # fields after the name, which may hold blanks and brackets; the first of them is the state
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _alive_here(owner: Any) -> bool | None:
    """Tell whether an owner on this machine may still write; None of one on another machine.

    False of what is no owner, such as half a file.
    """
    place = _place()
    try:
        if place is not None and owner["place"] == place:
            return _started(int(owner["pid"])) == owner["started"]
        float(owner["alive"])
        return None
    except (TypeError, ValueError, KeyError):
        return False


def _named(owner: Any) -> str:
    if not isinstance(owner, dict):
        return "nobody who could be named"
    who = f"process {owner.get('pid')} on {owner.get('host')}"
    return f"{who} since {owner['since']}" if "since" in owner else who
