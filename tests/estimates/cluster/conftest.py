"""One cluster for the tests of a file: its start costs seconds, and its idling a core's tenth."""

from __future__ import annotations

import os
from unittest import mock

import pytest

pytest.importorskip("distributed", reason='pip install ".[cluster]"')


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two processes of one thread, without torch until a test brings it.

    Workers number themselves by locks in the folder for temporary files: other tests have theirs.
    """
    from distributed import LocalCluster

    own = mock.patch.dict(os.environ, TMPDIR=str(tmp_path_factory.mktemp("workers")))
    with own, LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as found:
        yield found


@pytest.fixture
def client(cluster):
    """Return a client of two workers, whatever the last test did to them."""
    from distributed import Client

    cluster.scale(2)
    # not Dask's default, which a client that is lost leaves behind
    with Client(cluster, set_as_default=False) as found:
        found.wait_for_workers(2, timeout=30)
        yield found
