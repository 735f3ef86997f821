"""Compute with each norm that transformers defines, and with the convention that `anynorm.torch.convert` takes it for.

    pip install ".[models]"
    python -m benchmarks.originals.classes

It prints the classes that differ, those of the table that this version lacks, and the norms that are not in the table.
"""

import importlib
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from anynorm._models import CONVENTION_OF_CLASS
from anynorm._torch.hugging_face import convention_of

_NORM = re.compile(r"^class (\w*(?:RMS|Layer)Norm\w*)\(", re.MULTILINE)
FEATURES, ROWS = 64, 16


def defined() -> dict[str, str]:
    """Each class whose name is that of a norm, and the module that defines it; nothing is imported."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        sys.exit("transformers is not installed: pip install '.[models]'")
    found = {}
    for path in sorted((Path(spec.origin).parent / "models").glob("*/modeling_*.py")):
        for name in _NORM.findall(path.read_text(encoding="utf-8")):
            found[name] = f"transformers.models.{path.parent.name}.{path.stem}"
    return found


def compare(name: str, module: str) -> str | None:
    """What is wrong with a class of the table; None where it computes what its convention does."""
    import torch

    from anynorm.torch import convert

    kind = getattr(importlib.import_module(module), name)
    if convention_of(kind) is None:
        return "its module is not one that the table is for"
    torch.manual_seed(0)
    norm = kind(FEATURES).to(torch.bfloat16)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter, 0.5, 0.2)
    x = (torch.randn(ROWS, FEATURES) * torch.logspace(-2, 2, ROWS)[:, None]).to(torch.bfloat16)
    with torch.no_grad():
        theirs = norm(x)
        report = convert(norm)
        if report.skipped:
            return report.skipped[0].note
        ours = norm(x)
    if not torch.equal(ours, theirs):
        share = (ours == theirs).double().mean().item()
        return f"{share:.1%} of its results are those of {CONVENTION_OF_CLASS[name]}"
    return None


def wrong() -> Iterator[tuple[str, str]]:
    """Yield the classes of the table that do not go by their convention, and how."""
    for name, module in defined().items():
        if name in CONVENTION_OF_CLASS:
            try:
                reason = compare(name, module)
            except ImportError as error:  # of a package that only this model needs
                reason = f"not imported: {error}"
            if reason is not None:
                yield name, reason


def main() -> None:
    found = defined()
    for name, reason in wrong():
        print(f"{name}: {reason}")
    print("not in this version:", ", ".join(sorted(CONVENTION_OF_CLASS.keys() - found)) or "none")
    print("not in the table:", ", ".join(sorted(found.keys() - CONVENTION_OF_CLASS.keys())) or "none")


if __name__ == "__main__":
    main()
