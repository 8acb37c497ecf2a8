"""What README.md shows, for the tests to use as it stands there.

A fenced block's name follows its language: "```sh install". A table is known by its first heading.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from support import ROOT

README = ROOT / "README.md"

_BLOCK = re.compile(r"^```(\S*) ?(\S*)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block; its name is "" if it has none."""

    language: str
    name: str
    text: str


def lines() -> list[str]:
    return README.read_text("utf-8").splitlines()


def blocks() -> list[Block]:
    """Every fenced block, in order."""
    found = [Block(*parts) for parts in _BLOCK.findall(README.read_text("utf-8"))]
    assert sum(line.startswith("```") for line in lines()) == 2 * len(found), "one does not end"
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
    (table,) = re.findall(rf"(?m)^(\| {re.escape(heading)} \|.*\n(?:\|.*\n)+)", prose())
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
    return _BLOCK.sub("", README.read_text("utf-8"))


def words() -> str:
    """The prose with blanks for line ends, so that a phrase is found wherever a line ends."""
    return " ".join(prose().split())


def anchors() -> set[str]:
    """What a link within the file can point to: headings, as GitHub makes ids of them."""
    slugs = [
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"(?m)^#+ (.+)", prose())
    ]
    return {*slugs, *re.findall(r'<a id="([^"]+)">', prose())}
