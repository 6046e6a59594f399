"""What the packages promise: public names with examples, faces, kernels closed in their files."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from numba.core.dispatcher import Dispatcher

import approx
import bridges
import cpwl
import cpwl.plot

PUBLIC = [
    f"{package.__name__}.{name}"
    for package in (approx, bridges, cpwl, cpwl.plot)
    for name in package.__all__
]


@cache
def modules() -> dict[str, bool]:
    """Return every module of the three packages by name, and whether it is a package."""
    found = {}
    for root in (approx, bridges, cpwl):
        found[root.__name__] = True
        for info in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            found[info.name] = info.ispkg
    return found


def exports(package: str) -> list[str]:
    """Return what the face of a package lists, and what it imports as itself: open folders."""
    face = importlib.import_module(package)
    found = [
        alias.name
        for node in ast.walk(ast.parse(inspect.getsource(face)))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == alias.asname
    ]
    return [*getattr(face, "__all__", []), *found]


@pytest.mark.parametrize("path", PUBLIC)
def test_a_public_name_exists_and_shows_an_example(path: str) -> None:
    package, _, name = path.rpartition(".")
    value = getattr(importlib.import_module(package), name)
    if inspect.isfunction(value) or inspect.isclass(value):
        _, _, example = (inspect.getdoc(value) or "").partition("\nExamples\n--------\n")
        assert ">>> " in example


def test_no_module_bears_the_name_of_a_function_of_its_face() -> None:
    shared = [
        f"{package}.{name}"
        for package in modules()
        for name in exports(package)
        if f"{package}.{name}" in modules()
        and not inspect.ismodule(getattr(importlib.import_module(package), name))
    ]
    assert shared == []


def test_kernels_call_only_kernels_of_their_own_file() -> None:
    """numba's cache does not see a change of a callee that lives in another file."""
    kernels = [
        value
        for module in modules()
        for value in vars(importlib.import_module(module)).values()
        if isinstance(value, Dispatcher)
    ]
    strange = [
        f"{kernel.__module__}: {kernel.__name__} calls {called.__name__} of {called.__module__}"
        for kernel in kernels
        for called in _called(kernel.py_func)
        if called.__module__ != kernel.__module__
    ]
    assert kernels
    assert strange == []


def _called(function: Any) -> Iterator[Dispatcher]:
    """Yield the kernels that a function names, as globals or as attributes of modules."""
    names, scope = _names(function.__code__), function.__globals__
    used = [vars(scope[name]) for name in names if inspect.ismodule(scope.get(name))]
    for place in (scope, *used):
        yield from (place[n] for n in names if isinstance(place.get(n), Dispatcher))


def _names(code: CodeType) -> set[str]:
    """Return the global names and attributes that a function's code uses, nested code included."""
    nested = [const for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*map(_names, nested))


def test_packages_are_imported_by_their_faces() -> None:
    """Kernels are imported as modules; a folder whose face exports nothing is open."""
    past = [
        f"{module}:{line} imports {name} from inside {package}"
        for module in modules()
        for line, package, name in _imports(module)
        if not f"{module}.".startswith(f"{package}.")
        and "." in package  # the files of cpwl itself have no face but cpwl
        and not name.endswith("_kernels")
        and exports(package)
        and name not in exports(package)
    ]
    assert past == []


def _imports(module: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, package and name of what a module takes out of a package of ours."""
    path = Path(str(importlib.import_module(module).__file__))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            taken = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and modules().get(node.module or ""):
            taken = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            taken = [getattr(node, "module", None) or ""]
        for name in taken:
            if name.partition(".")[0] in ("approx", "bridges", "cpwl"):
                yield node.lineno, *name.rpartition(".")[::2]
