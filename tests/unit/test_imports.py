"""Imports point to what stands further left: login ← delivery ← shell, all on four files above."""

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
    "delivery": {"", "login", "delivery"},
    "shell": {"", "login", "delivery", "shell"},
    "recipes": set(),
}


def folder(module: str) -> str:
    """The folder of ours that a module is in: `tattle.login.pam` → `login`."""
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
    return {folder(name) for name in imported(path) if name.split(".")[0] == "tattle"}


FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


def test_every_folder_is_known() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == {*MAY_IMPORT} - {""}


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_only_to_the_left(name: str) -> None:
    own = Path(name).parts[0] if len(Path(name).parts) > 1 else ""
    # The front door opens onto each of them.
    allowed = {*MAY_IMPORT} if name == "__main__.py" else MAY_IMPORT[own]
    assert ours(PACKAGE / name) <= allowed
