"""The commands on a cluster: each worker reads the file itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from approx import describe, open_store
from bridges.cli.loading import read_decoder

pytest.importorskip("distributed", reason='pip install ".[cluster]"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (torch.zeros(2, 3),), dynamic_shapes=batch)
    torch.export.save(program, folder / "mlp.pt2")
    np.save(folder / "nine.npy", np.random.default_rng(0).normal(size=(9, 3)))
    return folder


def test_rows_of_workers_are_those_of_this_process(run, folder, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
    ) as cluster:
        line = f"describe @mlp.pt2 @nine.npy --scheduler {cluster.scheduler_address} --seed 3"
        status, out, err = run(f"{line} --store run.zarr -o a.csv")
        assert (status, err) == (0, "")
        assert "9 latents in" in out
    z = torch.from_numpy(np.load(folder / "nine.npy")).float()
    alone = describe(read_decoder(str(folder / "mlp.pt2")), z, seed=3, progress=False)
    np.testing.assert_allclose(open_store(tmp_path / "run.zarr").psi, alone.psi, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--workers 2 -o a.csv", "Expected --store, and no --device, with --scheduler"),
        ("--workers 2 --scheduler tcp://a:1 --store a", "Expected --scheduler or --workers, got"),
    ],
)
def test_what_is_refused(run, options, said):
    status, _, err = run(f"describe @mlp.pt2 @nine.npy {options}")
    assert status == 2
    assert said in err
