"""Archives of torch.export.save, changed as an attacker or an accident would."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_pt2(module: nn.Module, shape: tuple[int, ...], path: Path) -> Path:
    """Export a module with a free batch axis."""
    batch = {0: torch.export.Dim("batch")}
    example = (torch.zeros(2, *shape),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recurrent layers assign their weights
        exported = torch.export.export(module.eval(), example, dynamic_shapes=(batch,))
        torch.export.save(exported, path)
    return path


def rewrite(
    old: Path, new: Path, change: Callable[[dict[str, bytes]], Any], method: int = 0
) -> Path:
    """Copy a zip archive with changed members; the first folder is left out of their names."""
    with zipfile.ZipFile(old) as archive:
        first, slash, _ = archive.namelist()[0].partition("/")
        root = first + slash if slash else ""
        members = {name.removeprefix(root): archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(new, "w", method) as archive:
        for name, body in members.items():
            archive.writestr(f"{root}{name}", body)
    return new


def edit_json(member: str, change: Callable[[Any], Any]) -> Callable[[dict[str, bytes]], None]:
    """Return a change of one JSON member, for `rewrite`."""

    def apply(members: dict[str, bytes]) -> None:
        content = json.loads(members[member])
        change(content)
        members[member] = json.dumps(content).encode()

    return apply


def insert_node(
    target: str, arguments: dict[str, dict[str, Any]], *, name: str = "added", output: bool = True
) -> Callable[[dict[str, bytes]], None]:
    """Return a change that puts a call first into the graph; its result replaces `x`."""

    def apply(program: dict[str, Any]) -> None:
        graph = program["graph_module"]["graph"]
        node = {
            "target": target,
            "inputs": [{"name": k, "arg": v, "kind": 1} for k, v in arguments.items()],
            "outputs": [{"as_tensor": {"name": name}}] if output else [],
            "metadata": {},
            "is_hop_single_tensor_return": None,
            "name": name,
        }
        graph["nodes"].insert(0, node)

    return edit_json("models/model.json", apply)
