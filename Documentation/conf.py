# SPDX-License-Identifier: GPL-2.0
"""How Sphinx makes a site of these documents (make docs)."""

from docutils import nodes

project = "vmem"
copyright = "the authors of vmem"
html_theme = "alabaster"
html_theme_options = {"page_width": "75em", "sidebar_width": "16em"}
# Names in the header that other headers have.
nitpicky = False
primary_domain = None
highlight_language = "none"


def link_to_pages(app, doctree, docname):
    """The documents link to each other's files, which also works where they are read as files. On the site they are pages."""
    for reference in doctree.findall(nodes.reference):
        uri = reference.get("refuri", "")
        file, mark, anchor = uri.partition("#")
        if file.endswith(".rst") and "/" not in file:
            reference["refuri"] = file.removesuffix(".rst") + ".html" + mark + anchor


def setup(app):
    app.connect("doctree-resolved", link_to_pages)
    return {"parallel_read_safe": True}
