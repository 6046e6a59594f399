"""Threads: who does what share of a kernel's work, and how many torch has."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cpwl.arrays import TorchThreads, in_parallel

LARGE = 2**40


def test_the_caller_does_what_no_thread_has_begun(monkeypatch):
    monkeypatch.setattr("cpwl.arrays.parallel.available_cores", lambda: 3)
    free = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(free.wait)
        try:
            found = in_parallel(
                pool, lambda a, b: (a, b, threading.current_thread()), 10, nanoseconds=1e9
            )
        finally:
            free.set()
    assert [span[:2] for span in found] == [(0, 3), (3, 6), (6, 10)]
    assert {span[2] for span in found} == {threading.current_thread()}


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr("cpwl.arrays.parallel.available_cores", lambda: 2)
    begun = threading.Event()

    def work(start: int, stop: int) -> None:
        if start == 0:
            begun.set()
            raise KeyError(start)
        assert begun.wait(10)

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyError):
        in_parallel(pool, work, 2, nanoseconds=1e9)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        yield
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def elsewhere() -> int:
    """Return torch's number of threads in a thread that begins now."""
    with ThreadPoolExecutor(1) as others:
        return others.submit(torch.get_num_threads).result()


@pytest.mark.usefixtures("three_threads")
def test_torch_has_its_threads_for_large_work_alone():
    threads = TorchThreads()
    with threads.large(LARGE):
        assert torch.get_num_threads() == 3
    with threads.alone():
        assert torch.get_num_threads() == 1
        with threads.large(1), threads.alone():
            assert torch.get_num_threads() == 1
        with threads.large(LARGE):
            assert torch.get_num_threads() == 3
            assert elsewhere() == 3
        assert torch.get_num_threads() == 1
        with ThreadPoolExecutor(1, initializer=threads.leave) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
    assert elsewhere() == 3


@pytest.mark.usefixtures("three_threads")
def test_threads_that_begin_meanwhile_have_the_callers_number():
    with TorchThreads().alone():
        deadline = time.monotonic() + 10  # set by one more thread, which may take its time
        while elsewhere() != 3:
            assert time.monotonic() < deadline


@pytest.mark.usefixtures("three_threads")
def test_threads_of_torch_that_flush_are_not_used(monkeypatch):
    monkeypatch.setattr("cpwl.arrays.torch_threads.threads_flush", lambda threads: True)
    threads = TorchThreads()
    with threads.alone(), threads.large(LARGE):
        assert torch.get_num_threads() == 1
