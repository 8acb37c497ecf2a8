"""What README.md shows, for the tests to use as it stands there.

A block or a table that a test uses has a comment above it that no reader sees:
`<!-- test: NAME -->`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from support import ROOT

README = ROOT / "README.md"

_NAME = re.compile(r"<!-- test: (\S+) -->")
_FENCE = re.compile(r"```(\S*)")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    name: str
    """"" if it has none."""
    language: str
    text: str
    line: int
    """Of its first line, in README.md."""


def lines() -> list[str]:
    return README.read_text("utf-8").splitlines()


def blocks() -> list[Block]:
    """Every fenced block, in order."""
    found: list[Block] = []
    name, language, start = "", None, 0
    content: list[str] = []
    for number, line in enumerate(lines(), 1):
        fence = _FENCE.fullmatch(line)
        if language is not None:
            if line == "```":
                found.append(Block(name, language, "\n".join(content) + "\n", start))
                name, language, content = "", None, []
            else:
                content.append(line)
        elif fence:
            language, start = fence[1], number + 1
        elif line.strip():
            comment = _NAME.fullmatch(line)
            name = comment[1] if comment else ""
    assert language is None, f"the block that begins in line {start} does not end"
    return found


def block(name: str) -> Block:
    """The one block of that name."""
    (found,) = [one for one in blocks() if one.name == name]
    return found


def text(name: str) -> str:
    return block(name).text


def table(name: str) -> list[list[str]]:
    """The cells of the table of that name, without its head, as they are written."""
    rest = lines()[lines().index(f"<!-- test: {name} -->") + 1 :]
    rows = []
    for line in rest:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    return rows[2:]


def table_after(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    rest = lines()[lines().index(heading) + 1 :]
    first = next(n for n, line in enumerate(rest) if line.startswith("|"))
    rows = []
    for line in rest[first:]:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    return rows[2:]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip()[1:-1].split("|")]


def code(cell: str) -> list[str]:
    """What stands between backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def as_pattern(message: str) -> str:
    """A regular expression for a message in which `…` stands for anything."""
    return ".*".join(re.escape(part) for part in message.split("…"))


def prose() -> str:
    """README.md without its fenced blocks."""
    kept, inside = [], False
    for line in lines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def anchors() -> set[str]:
    """What a link within the file can point to: headings, as GitHub makes ids of them."""
    found = set()
    for line in prose().splitlines():
        heading = re.match(r"#+ (.+)", line)
        if heading:
            slug = re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
            found.add(slug)
    return found
