"""Threads: who does what share of a kernel's work, and how many torch has."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cpwl.arrays import in_parallel, torch_alone

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


def test_torch_has_its_threads_for_large_work_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(1) as pool, torch_alone(pool) as large:
            assert torch.get_num_threads() == 1
            with large(1):
                assert torch.get_num_threads() == 1
            with large(LARGE):
                assert torch.get_num_threads() == 3
            assert torch.get_num_threads() == 1
            pool.submit(int).result()  # after what was submitted before
            with ThreadPoolExecutor(1) as others:
                assert others.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_threads_of_torch_that_flush_are_not_used(monkeypatch):
    monkeypatch.setattr("cpwl.arrays.torch_threads.threads_flush", lambda threads: True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(1) as pool, torch_alone(pool) as large, large(LARGE):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
