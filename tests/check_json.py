"""`tattle check --json`, as tests read it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from standins.instance import TATTLE, Instance

IDS = [
    *("versions", "user", "pam", "environment", "sshd", "selinux", "witness", "disk", "spool"),
    *("delivery", "rejected", "elsewhere", "configuration", "identity", "role", "name"),
    *("endpoint", "clock", "bus", "send"),
]
STATUSES = {"error": 1, "warning": 2, "ok": 0, "skipped": 0}  # the worst one's is check's


class Finding(NamedTuple):
    id: str
    severity: str
    message: str
    advice: str
    service: str

    @property
    def name(self) -> str:
        """As it is printed for a person."""
        return f"{self.id} {self.service}".rstrip()

    @property
    def is_fault(self) -> bool:
        return self.severity in ("warning", "error")

    def __str__(self) -> str:
        return f"check says “{self.name}: {self.message}”"


def check(box: Instance, *arguments: str, **options: Any) -> list[Finding]:
    """What a check finds: something of everything, each fault with an advice, and the worst one's
    exit status."""
    done = box.run([TATTLE, "check", "--json", *arguments], **options)
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document.keys() == {"schema", "version", "findings"}
    assert document["schema"] == 1
    found = [Finding(**finding) for finding in document["findings"]]
    assert {finding.id for finding in found} == {*IDS}
    for finding in found:
        assert finding.advice or not finding.is_fault, finding
        assert "\n" not in finding.message + finding.advice
        assert "Traceback" not in finding.message
    severities = {finding.severity for finding in found}
    status = next(STATUSES[severity] for severity in STATUSES if severity in severities)
    assert done.returncode == status, found
    return found


def faults(found: list[Finding]) -> dict[str, Finding]:
    """Those that something is wrong with, by their names."""
    return {finding.name: finding for finding in found if finding.is_fault}
