"""Configuration of Sphinx, which makes the site of this documentation: `make docs`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from resflow_bench import __version__  # noqa: E402

project = "resflow_bench"
author = copyright = "resflow_bench authors"  # noqa: A001
version = release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "docs.extensions.checks",
    "docs.extensions.docstrings",
    "docs.extensions.links",
    "docs.extensions.packages",
    "docs.extensions.published",
    "docs.extensions.script_output",
    "docs.extensions.suite_pages",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["my_suite", "extensions", "drawn"]
smartquotes = False  # an option begins with two dashes
toc_object_entries_show_parents = "hide"
default_role = "py:obj"  # `ResidualFlow` in a docstring is a link

html_theme = "furo"
html_title = "resflow_bench"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
python_maximum_signature_line_length = 88

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"exclude-members": "extra_repr"}
autodoc_inherit_docstrings = False  # torch's say how to write a module
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
