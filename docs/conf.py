"""The documentation site: ``make docs`` builds it into ``docs/_build``."""

project = "freelunch"
copyright = "the authors of freelunch, Apache-2.0"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
highlight_language = "none"

myst_heading_anchors = 4  # headings can be linked to as on GitHub: page.md#heading

html_theme = "furo"
html_title = "freelunch"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
