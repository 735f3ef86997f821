"""How Sphinx builds these pages: ``python -m sphinx -W -b html docs docs/_build/html``."""

import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def answers(url):
    """Whether the inventory at this address can be had now. One that cannot would be a warning, and so an error."""
    request = urllib.request.Request(url + "objects.inv", headers={"User-Agent": "Sphinx"})
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except OSError:
        return False


with ThreadPoolExecutor() as pool:
    found = dict(zip(LIBRARIES, pool.map(answers, LIBRARIES.values()), strict=True))
intersphinx_mapping = {name: (url, None) for name, url in LIBRARIES.items() if found[name]}

html_theme = "pydata_sphinx_theme"
html_title = "anynorm"
html_static_path = ["_static"]
html_css_files = ["anynorm.css"]
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": False, "show_toc_level": 2, "secondary_sidebar_items": ["page-toc"]}
copybutton_exclude = ".linenos, .gp, .go"
