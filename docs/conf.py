"""How the documentation is built: ``sphinx-build -W --keep-going -b html docs OUTPUT``."""

from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.project import Project

project = "eventprop"
author = "The eventprop authors"
project_copyright = "The eventprop authors"
version = release = version_of("eventprop")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["analysis/*.py", "**/.ipynb_checkpoints", "_build"]  # each *.py is the pair of a notebook
suppress_warnings = ["toc.empty_glob"]  # the site builds without the notebooks too

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks, a link to ../analysis, are kept with their outputs

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch.nn.Module says nothing about these modules
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "eventprop"

# Sphinx follows the link docs/analysis, and then no longer knows the notebooks that others refer to
LINK = Path(__file__).parent / "analysis"
path2doc = Project.path2doc
Project.path2doc = lambda self, path: path2doc(self, str(path).replace(f"{LINK.resolve()}/", f"{LINK}/"))


def escape(app, what, name, obj, options, lines):
    """Docstrings are plain text: |x| and [B, *shape] are not meant as markup."""
    lines[:] = [line.replace("|", r"\|").replace(" *shape", r" \*shape") for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", escape)
