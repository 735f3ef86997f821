"""How Sphinx builds these pages: ``python -m sphinx -W -b html docs docs/_build/html``."""

import inspect
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from sphinx.util.inspect import stringify_signature

import anynorm

sys.path.append(str(Path(__file__).parent / "_ext"))

project = "anynorm"
author = "The anynorm developers"
project_copyright = author
version = release = anynorm.__version__

extensions = [
    "help_text",
    "inside_links",
    "myst_parser",
    "numpydoc",
    "pictures",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
default_role = "autolink"
nitpicky = True
# Names of our own must have a page; those of others are links where their inventory could be had.
nitpick_ignore_regex = [(r"py:.*", r"(?!anynorm\b).*")]

autosummary_generate = True
# Members of our own base classes are shown, and not those of torch's, Flax's and scikit-learn's, nor of tuples.
autosummary_context = {
    "others": "LayerNorm, RMSNorm, Module, BaseEstimator, TransformerMixin, "
    "OneToOneFeatureMixin, _MetadataRequester, _SetOutputMixin, tuple"
}
# A file of its own for each, also where file names that differ in case are one.
autosummary_filename_map = {"anynorm.Moments": "anynorm.Moments-class"}
autodoc_typehints = "none"  # the docstrings say it in words
# Made by scikit-learn for each estimator, and described there.
autodoc_default_options = {"exclude-members": "set_fit_request, set_transform_request, set_inverse_transform_request"}
autodoc_inherit_docstrings = False  # what torch and Flax say of their methods is in their documentation
numpydoc_show_class_members = False  # the template of classes has them in full

LIBRARIES = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "jax": "https://docs.jax.dev/en/latest/",
    "cupy": "https://docs.cupy.dev/en/stable/",
    "dask": "https://docs.dask.org/en/stable/",
    "sklearn": "https://scikit-learn.org/stable/",
}


INVENTORIES = Path(__file__).parent / "_build" / "inventories"


def fetched(name):
    """Fetch the list of a library's pages, or return None where it cannot be had: its names are then no links.

    Sphinx would fetch it too, but without a network that would be a warning, which stops the build under -W.
    """
    request = urllib.request.Request(LIBRARIES[name] + "objects.inv", headers={"User-Agent": "Sphinx"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            content = answer.read()
    except (OSError, HTTPException):
        return None
    if not content.startswith(b"# Sphinx inventory"):
        return None
    INVENTORIES.mkdir(parents=True, exist_ok=True)
    path = INVENTORIES / f"{name}.inv"
    path.write_bytes(content)
    return str(path)


with ThreadPoolExecutor() as pool:
    found = dict(zip(LIBRARIES, pool.map(fetched, LIBRARIES), strict=True))
intersphinx_mapping = {name: (LIBRARIES[name], path) for name, path in found.items() if path is not None}


def with_arguments(app, what, name, described, options, signature, returns):
    """Give a class the arguments of its __init__ where its metaclass takes any, as that of Flax's modules does."""
    if what == "class" and signature == "(*args, **kwargs)":
        arguments = list(inspect.signature(described.__init__).parameters.values())[1:]
        signature = stringify_signature(inspect.Signature(arguments), show_annotation=False)
    return signature, returns


def setup(app):
    """Connect the above."""
    app.connect("autodoc-process-signature", with_arguments)


html_theme = "pydata_sphinx_theme"
html_title = "anynorm"
html_static_path = ["_static"]
html_css_files = ["anynorm.css"]
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
}
# Pages without others below them have no use for a list of those.
html_sidebars = {page: [] for page in ("start", "which_norm", "contract", "how_it_works", "source_map", "speed")}
copybutton_exclude = ".linenos, .gp, .go"
