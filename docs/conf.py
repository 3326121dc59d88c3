"""How Sphinx builds the pages that `docs/build.py` lays out; nothing here needs the network."""

from visionpulse_analysis import __version__

project = "visionpulse_analysis"
release = __version__
author = "the visionpulse_analysis contributors"
copyright = f"{author}, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "numpydoc"]

html_theme = "furo"
html_title = "visionpulse analysis"
html_show_sphinx = False
html_copy_source = False
html_show_search_summary = False  # fetched from each page found, which no browser does for a file
html_css_files = ["site.css"]
html_static_path = ["static"]
exclude_patterns = []

# Notebooks come executed, and the explorer stands in their output as HTML: no widget manager, which is on a CDN only.
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_merge_streams = True

# Links between pages are those that GitHub shows: to a file, and to a heading by GitHub's name of it.
myst_heading_anchors = 3
myst_enable_extensions = ["html_image"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc tells types
numpydoc_show_class_members = False
default_role = "py:obj"
suppress_warnings = ["misc.highlighting_failure", "mystnb.lexer"]  # mermaid is drawn by GitHub only
