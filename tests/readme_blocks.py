"""What README.md shows, for the tests to use as it stands there.

A fenced block's name follows its language: "```sh install". A table is known by its first heading.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from support import ROOT

README = ROOT / "README.md"

_FENCE = re.compile(r"```(\S*) ?(\S*)")


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
    opened: re.Match[str] | None = None
    start = 0
    for number, line in enumerate(lines(), 1):
        fence = _FENCE.fullmatch(line)
        if opened and line == "```":
            content = "".join(f"{one}\n" for one in lines()[start : number - 1])
            found.append(Block(opened[2], opened[1], content, start + 1))
            opened = None
        elif fence and not opened:
            opened, start = fence, number
    assert not opened, f"the block that begins in line {start} does not end"
    return found


def text(name: str) -> str:
    """The text of the one block of that name."""
    (found,) = [one for one in blocks() if one.name == name]
    return found.text


def commands(text: str) -> list[str]:
    """The commands of a shell block, each whole: with the lines it goes on in."""
    found = re.split(r"\n(?![ \t]|done\b)", text.strip())
    return [one for one in found if one.strip()]


def table(heading: str, head: bool = False) -> list[list[str]]:
    """The cells of the table whose first column has that heading, with or without its head."""
    (table,) = re.findall(rf"(?m)^(\| {re.escape(heading)} \|.*\n(?:\|.*\n)+)", prose() + "\n")
    first, _, *rows = (
        [cell.strip() for cell in row[1:-1].split("|")] for row in table.splitlines()
    )
    return [first, *rows] if head else rows


def code(text: str) -> list[str]:
    """What stands between backticks, on one line."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text)]


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


def words() -> str:
    """The prose with blanks for line ends, so that a phrase is found wherever a line ends."""
    return " ".join(prose().split())


def anchors() -> set[str]:
    """What a link within the file can point to: headings, as GitHub makes ids of them."""
    found = set(re.findall(r'<a id="([^"]+)">', prose()))
    for line in prose().splitlines():
        heading = re.match(r"#+ (.+)", line)
        if heading:
            slug = re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
            found.add(slug)
    return found
