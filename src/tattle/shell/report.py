"""What `tattle check` found, as JSON for a machine and as text for a person."""

from __future__ import annotations

import contextlib
import json
import locale
import os
import sys
from collections import Counter
from collections.abc import Iterator

from tattle import __version__
from tattle.errors import one_line, runnable
from tattle.shell.finding import ERROR, OK, SKIPPED, WARNING, Finding

SCHEMA = 1  # of the JSON; another number where a reader of this one would be misled
MARKS = {ERROR: "✗", WARNING: "!", OK: "✓", SKIPPED: "-"}
ARROW = "→"
WORDS = {ERROR: "ERROR", WARNING: "warning", OK: "ok", SKIPPED: "-"}
COLOURS = {ERROR: "\033[31m", WARNING: "\033[33m", OK: "\033[32m", SKIPPED: ""}


def as_json(found: list[Finding]) -> str:
    """Return the findings for a machine, one a line."""
    shown = [finding._replace(advice=runnable(finding.advice))._asdict() for finding in found]
    lines = ",\n".join(json.dumps(finding, ensure_ascii=False) for finding in shown)
    return f'{{"schema": {SCHEMA}, "version": "{__version__}", "findings": [\n{lines}\n]}}'


def as_text(found: list[Finding], encoding: str, colour: bool) -> Iterator[str]:
    """Yield the lines for a person, the last of which sums up."""
    try:
        "".join([*MARKS.values(), ARROW]).encode(encoding)
        marks, arrow = MARKS, ARROW
    except (LookupError, UnicodeEncodeError):
        marks, arrow = WORDS, "->"
    if colour:
        marks = {severity: f"{COLOURS[severity]}{mark}\033[0m" for severity, mark in marks.items()}
    for finding in found:
        name = f"{finding.id} {finding.service}".rstrip()
        yield f"{marks[finding.severity]} {name}: {one_line(finding.message)}"
        if finding.advice:
            yield f"    {arrow} {one_line(runnable(finding.advice))}"
    count = Counter(finding.severity for finding in found)
    numbers = [
        f"{count[severity]} {word}{'s' if count[severity] != 1 else ''}"
        for severity, word in ((ERROR, "error"), (WARNING, "warning"))
    ]
    yield f"{', '.join(numbers)}, {count[OK]} ok, {count[SKIPPED]} skipped"


def report(found: list[Finding], in_json: bool) -> None:
    """Print the findings."""
    if in_json:
        print(as_json(found))
        return
    encoding = "ascii"
    with contextlib.suppress(locale.Error):  # Python itself was started to speak UTF-8
        locale.setlocale(locale.LC_CTYPE, "")
        encoding = locale.nl_langinfo(locale.CODESET)
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for line in as_text(found, encoding, sys.stdout.isatty() and wanted):
        print(line)
