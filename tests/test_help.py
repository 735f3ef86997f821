"""What help() says: first what one can call, and nothing of where things lie on this machine."""

import inspect
import pydoc
import re
import sys
from pathlib import Path

import pytest

import anynorm
import anynorm.nnx
import anynorm.sklearn
import anynorm.torch
from anynorm._modules.loading import IncompatibleKeys
from anynorm._torch.convert import Entry, Report

PUBLIC = [
    pytest.param(getattr(module, name), id=f"{module.__name__}.{name}")
    for module in (anynorm, anynorm.nnx, anynorm.sklearn, anynorm.torch)
    for name in module.__all__
    if callable(getattr(module, name))  # all but a mapping
]


def shown(thing):
    return pydoc.render_doc(thing, renderer=pydoc.plaintext)


@pytest.mark.parametrize("thing", PUBLIC)
def test_no_address_or_path_is_shown(thing):
    methods = [one for _, one in inspect.getmembers(thing, inspect.isfunction)] if inspect.isclass(thing) else []
    for one in (thing, *(method for method in methods if method.__module__.startswith("anynorm"))):
        signature = str(inspect.signature(one))
        assert not re.search(r"<|[/\\]\w", signature), signature
    for place in (" at 0x", "<module", str(Path(anynorm.__file__).parent), sys.prefix):
        assert place not in shown(thing).partition("inherited from flax.")[0]  # which shows some of its own


@pytest.mark.parametrize("kind", [anynorm.Explanation, IncompatibleKeys, Entry, Report])
def test_fields_are_described(kind):
    assert "Alias for field number" not in shown(kind)
    for name in kind._fields:
        of_type, text = getattr(kind, name).__doc__.split("\n", 1)
        assert of_type in kind.__doc__
        assert text.split()[0] in kind.__doc__


@pytest.mark.parametrize("module", [anynorm, anynorm.nnx, anynorm.torch])
def test_help_begins_with_what_one_can_call(module):
    beginning = shown(module).partition("\nDESCRIPTION\n")[2]
    beginning = re.split(r"\n(?:PACKAGE CONTENTS|CLASSES)\n", beginning)[0]
    for name in module.__all__:
        assert re.search(rf"(?m)^ +{name}\b", beginning), name


@pytest.mark.parametrize("module", [anynorm, anynorm.nnx, anynorm.sklearn, anynorm.torch])
def test_type_checkers_see_each_public_name(module):
    read_by_them = (Path(__file__).parent / "typed_calls.py").read_text()
    for name in module.__all__:
        assert re.search(rf"\b{module.__name__}\.{name}\b", read_by_them), name
