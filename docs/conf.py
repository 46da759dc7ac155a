"""How the site is built: `make docs`. Nothing is fetched, neither when it is built nor when it is read."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]  # _generate; das3d without an installation

import das3d  # noqa: E402

project = "das3d"
author = "the das3d authors"
copyright = author
version = release = das3d.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "_generate"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

napoleon_use_ivar = True  # a named tuple documents its fields itself
smartquotes = False  # which would make one dash of the two before an option
default_role = "literal"  # docstrings write code in single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"das3d {release}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["das3d.css"]
