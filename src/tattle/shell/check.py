"""`tattle check`: find what keeps events from arriving, and say what to do about it.

Each probe stands alone, so that one that fails or hangs takes none of the others with it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from tattle.errors import REPORT, TattleError
from tattle.event.config import Config, load
from tattle.shell import check_aws, check_pam, check_spool, check_sshd, check_witness, selinux
from tattle.shell.finding import ERROR, OK, SKIPPED, WARNING, Finding, failed
from tattle.shell.report import report
from tattle.shell.version import age, version

PROBE_SECONDS = 10.0  # for all probes at once
# The exit status is that of the worst finding.
STATUSES = {ERROR: 1, WARNING: 2, OK: 0, SKIPPED: 0}
Probe = Callable[[], Iterator[Finding]]


def host() -> Iterator[Finding]:
    """Say what runs, and as whom."""
    yield Finding("versions", OK, version() + age())
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
    # What each looks at. There is a finding for each id, if only that it was skipped.
    probes: dict[tuple[str, ...], Probe] = {
        ("versions", "user"): host,
        ("pam", "environment"): lambda: check_pam.pam(config),
        ("sshd",): check_sshd.sshd,
        ("selinux",): selinux.probe,
        ("witness",): check_witness.probe,
        ("disk", "spool", "delivery", "rejected", "elsewhere"): check_spool.spool,
        ("configuration",): check_aws.configuration,
        ("identity",): lambda: check_aws.identity(config),
        ("role",): check_aws.role,
        ("name", "endpoint", "clock"): lambda: check_aws.endpoint(config),
        ("bus",): lambda: check_aws.buses(config),
        ("send",): lambda: check_aws.send(config) if sending else iter(()),
    }
    found: dict[tuple[str, ...], list[Finding]] = {ids: [] for ids in probes}
    threads = {
        ids: threading.Thread(target=run, args=(probe, ids, found[ids]), daemon=True)
        for ids, probe in probes.items()
    }
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + PROBE_SECONDS
    for ids, thread in threads.items():
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            message, id_ = f"no result within {PROBE_SECONDS:.0f} s", next_id(ids, found[ids])
            advice = "security group, route, VPC endpoint? Something does not answer"
            if id_ == "name":
                advice = "look at the name servers in /etc/resolv.conf: does one not answer?"
            found[ids].append(Finding(id_, ERROR, message, advice))
    return [finding for ids in probes for finding in with_skipped(ids, list(found[ids]))]


def run(probe: Probe, ids: tuple[str, ...], found: list[Finding]) -> None:
    """Add what a probe finds; and that it failed, if it did, at what it was looking at."""
    try:
        for finding in probe():
            found.append(finding)
    except TattleError as error:
        found.append(failed(next_id(ids, found), error))
    except Exception as error:
        message = f"can't be checked: {type(error).__name__}: {error}"
        advice = f"{REPORT}, with the output of: sudo tattle check --json"
        found.append(Finding(next_id(ids, found), ERROR, message, advice))


def next_id(ids: tuple[str, ...], found: list[Finding]) -> str:
    """Return what a probe that came no further was looking at."""
    seen = {finding.id for finding in found}
    return next((id_ for id_ in ids if id_ not in seen), ids[-1])


def with_skipped(ids: tuple[str, ...], found: list[Finding]) -> list[Finding]:
    """Return a probe's findings in the order of its ids, those included that it did not get to."""
    missing = {*ids} - {finding.id for finding in found}
    reason = "only with --send" if "send" in missing else "not looked at"
    found += [Finding(id_, SKIPPED, reason) for id_ in missing]
    return sorted(found, key=lambda finding: ids.index(finding.id))


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
