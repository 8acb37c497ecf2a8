"""`tattle check`: find what keeps events from arriving, and say what to do about it.

Each probe stands alone, so that one that fails or hangs takes none of the others with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import locale
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NoReturn

from tattle import __version__
from tattle.delivery.config import Config, load
from tattle.errors import TattleError, one_line, runnable
from tattle.shell import check_aws, check_host
from tattle.shell.finding import ERROR, OK, SKIPPED, WARNING, Finding
from tattle.shell.version import version

PROBE_SECONDS = 10.0  # for all probes at once
SCHEMA = 1  # of the JSON; another number where a reader of this one would be misled
# The exit status is that of the worst finding.
STATUSES = {ERROR: 1, WARNING: 2, OK: 0, SKIPPED: 0}
MARKS = {ERROR: "✗", WARNING: "!", OK: "✓", SKIPPED: "-"}
ARROW = "→"
WORDS = {ERROR: "ERROR", WARNING: "warning", OK: "ok", SKIPPED: "-"}
COLOURS = {ERROR: "\033[31m", WARNING: "\033[33m", OK: "\033[32m", SKIPPED: ""}
# What each probe looks at. There is a finding for each, if only that it was skipped.
IDS = {
    "host": ("versions", "user"),
    "pam": ("pam", "environment"),
    "sshd": ("sshd",),
    "selinux": ("selinux",),
    "spool": ("disk", "spool", "delivery", "rejected"),
    "configuration": ("configuration",),
    "identity": ("identity",),
    "role": ("role",),
    "endpoint": ("name", "endpoint", "clock"),
    "send": ("send",),
}


def host() -> Iterator[Finding]:
    """Say what runs, and as whom."""
    yield Finding("versions", OK, version())
    if os.geteuid() == 0:
        yield Finding("user", OK, "root")
    else:
        message = "not root, who sees more: the spool, and sshd's configuration"
        yield Finding("user", WARNING, message, "sudo tattle check")


def findings(sending: bool) -> list[Finding]:
    """Run every probe at once, and return what they found in a fixed order."""
    try:
        config = load()
    except TattleError:
        config = Config()  # the configuration's own probe says so
    probes: dict[str, Callable[[], Iterator[Finding]]] = {
        "host": host,
        "pam": lambda: check_host.pam(config),
        "sshd": check_host.sshd,
        "selinux": check_host.selinux,
        "spool": check_host.spool,
        "configuration": check_aws.configuration,
        "identity": lambda: check_aws.identity(config),
        "role": check_aws.role,
        "endpoint": lambda: check_aws.endpoint(config),
        "send": lambda: check_aws.send(config) if sending else iter(()),
    }
    found: dict[str, list[Finding]] = {name: [] for name in probes}

    def run(name: str) -> None:
        try:
            for finding in probes[name]():
                found[name].append(finding)
        except Exception as error:
            message = f"can't be checked: {type(error).__name__}: {error}"
            advice = "please report it, with the output of: sudo tattle check --json"
            found[name].append(Finding(next_id(name, found[name]), ERROR, message, advice))

    threads = {name: threading.Thread(target=run, args=(name,), daemon=True) for name in probes}
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + PROBE_SECONDS
    for name, thread in threads.items():
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            message, id_ = f"no result within {PROBE_SECONDS:.0f} s", next_id(name, found[name])
            advice = "security group, route, VPC endpoint? Something does not answer"
            if id_ == "name":
                advice = "look at the name servers in /etc/resolv.conf: does one not answer?"
            found[name].append(Finding(id_, ERROR, message, advice))
    return [finding for name in probes for finding in with_skipped(name, list(found[name]))]


def next_id(probe: str, found: list[Finding]) -> str:
    """Return what a probe that came no further was looking at."""
    seen = {finding.id for finding in found}
    return next((id_ for id_ in IDS[probe] if id_ not in seen), IDS[probe][-1])


def with_skipped(probe: str, found: list[Finding]) -> list[Finding]:
    """Return a probe's findings in the order of its ids, those included that it did not get to."""
    reason = "only with --send" if probe == "send" else "not looked at"
    missing = set(IDS[probe]) - {finding.id for finding in found}
    found += [Finding(id_, SKIPPED, reason) for id_ in missing]
    return sorted(found, key=lambda finding: IDS[probe].index(finding.id))


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


def main(sending: bool, in_json: bool) -> NoReturn:
    """Check, say what was found, and end with the status of the worst finding."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    found = findings(sending)
    with contextlib.suppress(BrokenPipeError):  # who reads it has seen enough
        report(found, in_json)
        sys.stdout.flush()
    severities = {finding.severity for finding in found}
    status = next((STATUSES[s] for s in STATUSES if s in severities), 0)
    os._exit(status)  # a probe that hangs would keep the interpreter
