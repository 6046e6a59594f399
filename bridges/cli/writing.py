"""Tables and fields written as files and Zarr stores, whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cpwl.files import atomic_folder, atomic_path

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure, SubFigure


def write_dataset(dataset: xr.Dataset, path: Path) -> None:
    """Write a Dataset as .nc, .zarr or, one row for each of its points, .parquet or .csv.

    A .csv file begins with the attributes, one line ``# name: value`` each, which
    ``pandas.read_csv(path, comment="#")`` skips.

    Raises
    ------
    ImportError
        The format's package is missing (extra ``cpwl[table]``).
    """
    try:
        if path.suffix == ".zarr":
            with atomic_folder(path) as part:
                # format 3 has no specification for text (labels) and for consolidated metadata yet
                dataset.to_zarr(part, mode="w", zarr_format=2, consolidated=True)
            return
        with atomic_path(path) as part:
            if path.suffix == ".nc":
                dataset.to_netcdf(part, engine="netcdf4")
            elif path.suffix == ".csv":
                _write_csv(_rows(dataset), part)
            else:
                _rows(dataset).to_parquet(part)
    except ImportError as error:
        raise ImportError(
            f"Expected the packages that write {path.suffix}, got {error}: "
            "pip install 'cpwl[table]'."
        ) from error


def write_figure(figure: Figure | SubFigure, path: Path) -> None:
    """Write a figure as .png, .pdf or .svg, and close it."""
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight")
    plt.close(figure)


def write_all(
    paths: tuple[Path, ...], save: Callable[[Path], None]
) -> Iterator[tuple[Path, Exception | None]]:
    """Write every file before an error of one of them is raised: the work is not to be repeated."""
    failures = []
    for path in paths:
        try:
            save(path)
            yield path, None
        except Exception as error:
            failures.append(error)
            yield path, error
    if failures:
        raise failures[0]


_PACKAGES = {
    ".csv": ("table", "pandas", "xarray"),
    ".parquet": ("table", "pandas", "pyarrow"),
    ".nc": ("table", "xarray", "netCDF4"),
    ".zarr": ("table", "xarray", "zarr"),
}


def check_packages(
    paths: tuple[Path, ...], needed: Mapping[str, tuple[str, ...]] = _PACKAGES
) -> None:
    """Refuse formats whose package is missing, before the work and not after it.

    `needed` has the extra that installs them and the packages of each suffix.
    """
    from importlib.util import find_spec

    for path in paths:
        extra, *names = needed.get(path.suffix, ("",))
        for name in names:
            if find_spec(name) is None:
                raise ImportError(
                    f"Expected {name} to be installed for '{path}', got none: "
                    f"pip install 'cpwl[{extra}]'."
                )


def check_store(path: Path) -> None:
    """Refuse to replace what is not a Zarr store by one."""
    if path.suffix != ".zarr" or not path.exists():
        return
    if not (path / "zarr.json").is_file() and not (path / ".zgroup").is_file():
        raise ValueError(
            f"Expected no file at '{path}', or a Zarr store to replace, got something else. "
            "Give another name, or remove it."
        )
    if (path / "run").is_dir():
        raise ValueError(
            f"Expected a result to replace at '{path}', got the store of a run. Give another name, "
            "or remove it."
        )


def partial_path(path: Path) -> Path:
    """Name of a result that was interrupted: never the one of a whole one."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write rows behind a header of attributes; text in quotation marks, where # begins nothing."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        for name, value in frame.attrs.items():
            stream.write(f"# {name}: {' '.join(str(value).split())}\n")
        frame.to_csv(stream, index=frame.index.name is not None, quoting=csv.QUOTE_NONNUMERIC)


def _rows(dataset: xr.Dataset) -> pd.DataFrame:
    """Return one row for each point; what does not vary over them stays out."""
    dims = dataset["psi"].dims
    names = [name for name in dataset.data_vars if dataset[name].dims == dims]
    frame = dataset[names].to_dataframe()
    if len(dims) > 1:
        frame = frame.reset_index()
    frame.attrs = {str(name): value for name, value in dataset.attrs.items()}
    return frame
