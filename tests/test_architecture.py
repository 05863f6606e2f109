"""The layout of the packages in floors, as CONTRIBUTING.md has it: over all imports, also those in functions and for types."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    ("core",), ("solvers",), ("layers",), ("losses", "encoders", "data"), ("tools",), ("training",),
    ("train", "evaluate", "predict", "collect"), ("surrogate_baseline",),
)  # fmt: skip
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("eventprop", "surrogate_baseline")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """The modules of the two packages that ``module`` imports. A package that they lie in is not counted."""
    path, found = MODULES[module], set()
    here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name if (name := f"{source}.{alias.name}") in MODULES else source for alias in node.names}
    return found & MODULES.keys()


IMPORTS = {module: imports(module) for module in MODULES}


def part(module: str) -> str:
    """What stands on a floor: the first name below ``eventprop``, or the other package."""
    return module.removeprefix("eventprop.").split(".")[0]


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"eventprop"}))
def test_modules_import_what_lies_below_them(module):
    mine = part(module)
    lowest = 1 if mine in ("encoders", "data") else HEIGHT[mine]  # these import core alone
    for other in map(part, IMPORTS[module]):
        if other == "eventprop":
            assert mine == "surrogate_baseline", f"{module} must import from the module that has the name"
        else:
            assert other == mine or HEIGHT[other] < lowest, f"{module} must not import {other}"


def test_no_imports_go_in_a_circle():
    graphlib.TopologicalSorter(IMPORTS).prepare()
