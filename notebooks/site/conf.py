"""Sphinx's settings for the site, and what is made when it is built.

    sphinx-build -W -b html notebooks/site build/site

`generated/` is made anew by every build: the notebooks as .ipynb, either those in the folder that
the environment variable CPWL_NOTEBOOKS names, executed, or the scripts as they are; and one page
for each public name.
"""

import os
import shutil
import sys
from importlib.metadata import version as version_of
from pathlib import Path

import jupytext

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GENERATED = HERE / "generated"
sys.path[:0] = [str(ROOT), str(HERE)]  # the checkout, not what may be installed
os.environ.setdefault("MPLBACKEND", "Agg")


def make_notebooks(target: Path) -> None:
    """Put every notebook as .ipynb into a folder, executed if CPWL_NOTEBOOKS has them."""
    executed = os.environ.get("CPWL_NOTEBOOKS")
    target.mkdir(parents=True)
    for script in sorted(HERE.parent.glob("*.py")):
        notebook = target / f"{script.stem}.ipynb"
        if executed:
            shutil.copyfile(Path(executed) / notebook.name, notebook)
        else:
            jupytext.write(jupytext.read(script), notebook)


shutil.rmtree(GENERATED, ignore_errors=True)
make_notebooks(GENERATED / "notebooks")

project = "cpwl"
author = "The cpwl developers"
copyright = author
version = release = version_of("cpwl")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_nb",
    "directives",
]
templates_path = ["_templates"]
default_role = "py:obj"  # `name` in a docstring is a link where the reference has the name

autodoc_typehints = "none"  # the docstrings say the types
autodoc_member_order = "groupwise"
maximum_signature_line_length = 88
python_display_short_literal_types = True
# files of names that differ in their case alone would be one file on some systems
autosummary_filename_map = {
    "approx.Knots": "approx.Knots-class",
    "approx.diffusion.reward.Report": "approx.diffusion.reward.Report-class",
    "approx.Spectrum": "approx.Spectrum-class",
    "bridges.networks.toys.Toy": "bridges.networks.toys.Toy-class",
}
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

nb_execution_mode = "off"  # .ci/run executes them, once
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars
myst_enable_extensions = []  # no formulas: they would need a script from elsewhere
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"cpwl {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
