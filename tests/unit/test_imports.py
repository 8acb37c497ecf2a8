"""Imports point to what stands further left: login ← event ← aws ← delivery ← shell, all on four
files above; only aws/ knows botocore, and no two modules import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT

PACKAGE = ROOT / "src" / "tattle"
MAY_IMPORT = {
    "": {""},
    "login": {"", "login"},
    "event": {"", "login", "event"},
    "aws": {"", "login", "event", "aws"},
    "delivery": {"", "login", "event", "aws", "delivery"},
    "shell": {"", "login", "event", "aws", "delivery", "shell"},
    "recipes": set(),
}


def directory(module: str) -> str:
    """The directory of ours that a module is in: `tattle.login.pam` → `login`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def imported(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, wherever in it, and for types only too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def ours(path: Path) -> set[str]:
    return {directory(name) for name in imported(path) if name.split(".")[0] == "tattle"}


FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


def test_every_directory_is_known() -> None:
    directories = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert directories == {*MAY_IMPORT} - {""}


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_only_to_the_left(name: str) -> None:
    own = Path(name).parts[0] if len(Path(name).parts) > 1 else ""
    # The entry point runs each of them.
    allowed = {*MAY_IMPORT} if name == "__main__.py" else MAY_IMPORT[own]
    assert ours(PACKAGE / name) <= allowed


@pytest.mark.parametrize("name", NAMES)
def test_only_aws_knows_botocore_and_urllib3(name: str) -> None:
    foreign = {module.split(".")[0] for module in imported(PACKAGE / name)}
    if not name.startswith("aws/"):
        assert not foreign & {"botocore", "urllib3"}


def test_no_two_modules_import_each_other() -> None:
    modules = {"tattle." + name[:-3].replace("/", "."): PACKAGE / name for name in NAMES}
    uses = {
        module: {
            used for used in modules for name in imported(path) if f"{name}.".startswith(f"{used}.")
        }
        for module, path in modules.items()
    }
    while leaves := [module for module, used in uses.items() if not used & uses.keys()]:
        for module in leaves:
            del uses[module]
    assert not uses, "they import one another in a circle"
