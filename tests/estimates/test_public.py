"""The faces of approx: an example for every public name, no module named like a function."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

import approx
import approx.diffusion
import approx.plot
import approx.populations
import approx.sampling

PUBLIC = [
    (package, name)
    for package in (approx, approx.diffusion.maps, approx.plot, approx.populations, approx.sampling)
    for name in package.__all__
]
FACES = [
    approx,
    *(import_module(f"approx.{m.name}") for m in pkgutil.iter_modules(approx.__path__)),
]


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_a_public_name_has_an_example(package, name):
    assert ">>> " in getattr(package, name).__doc__


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_no_module_bears_the_name_of_what_its_face_exports(face):
    modules = {module.name for module in pkgutil.iter_modules(getattr(face, "__path__", []))}
    assert not modules & set(getattr(face, "__all__", []))


def test_importing_approx_imports_no_scipy():
    """Which takes a second and more: all that is needed of it is one quantile."""
    seen = "import sys, approx; print(*(name for name in sys.modules if name == 'scipy'))"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert not done.stdout.split()
