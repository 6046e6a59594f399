"""The recipes of the site's page of clusters."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "notebooks" / "site" / "cluster.md"
LOCAL, SLURM, KUBERNETES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.nightly
def test_one_machine(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(LOCAL.replace("threads_per_worker=1", 'dashboard_address=":0"'))
    names = runpy.run_path(str(script), run_name="__main__")
    assert len(names["table"]) == 1000
    assert names["table"].complete


def test_slurm() -> None:
    jobqueue = pytest.importorskip("dask_jobqueue", reason="pip install dask-jobqueue")
    names: dict = {}
    exec(SLURM.partition("cluster.scale")[0], names)
    script = names["cluster"].job_script()
    names["cluster"].close()
    assert isinstance(names["cluster"], jobqueue.SLURMCluster)
    assert "#SBATCH --gres=gpu:1\nsource ~/cpwl/bin/activate\n" in script
    assert "--nthreads 4" in script


def test_kubernetes() -> None:
    pytest.importorskip("dask_kubernetes", reason="pip install dask-kubernetes")
    names: dict = {}
    exec(KUBERNETES.partition("client = Client")[0], names)
    worker = names["spec"]["spec"]["worker"]["spec"]["containers"][0]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker["args"][:3] == ["dask-worker", "--nthreads", "1"]
