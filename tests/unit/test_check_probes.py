"""What `tattle check` makes of what its probes found, and what it makes of sshd's answers."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from tattle.shell import check_sshd, report
from tattle.shell.finding import Finding

FOUND = [
    Finding("versions", "ok", "tattle 1.1.0"),
    Finding("pam", "warning", "`su -` is not reported", "sudo tee /etc/pam.d/su-l", "su-l"),
    Finding("role", "error", "no credentials: \x1b]0;x\x07", "attach\none"),
    Finding("send", "skipped", "only with --send"),
]
TEXT = [
    "✓ versions: tattle 1.1.0",
    "! pam su-l: `su -` is not reported",
    "    → tee /etc/pam.d/su-l",
    r"✗ role: no credentials: \x1b]0;x\x07",
    r"    → attach\none",
    "- send: only with --send",
    "1 error, 1 warning, 1 ok, 1 skipped",
]


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


class TestOutput:
    def test_a_line_for_each_finding_below_it_the_advice_and_then_the_counts(self) -> None:
        """What others chose can't steer the terminal."""
        assert [*report.as_text(FOUND, "utf-8", False)] == TEXT

    def test_json_carries_the_same(self) -> None:
        document = json.loads(report.as_json(FOUND))
        expected = [finding._asdict() for finding in FOUND]
        expected[1]["advice"] = "tee /etc/pam.d/su-l"
        assert (document["schema"], document["findings"]) == (1, expected)

    def test_a_terminal_without_the_signs_gets_words(self) -> None:
        lines = [*report.as_text(FOUND, "ascii", False)]
        assert [line.split()[0] for line in lines] == [
            "ok",
            "warning",
            "->",
            "ERROR",
            "->",
            "-",
            "1",
        ]
        assert "".join(lines).isascii()

    @pytest.mark.parametrize(
        ("terminal", "variables", "coloured"),
        [
            (True, {}, True),
            (True, {"NO_COLOR": ""}, True),  # as https://no-color.org has it
            (True, {"NO_COLOR": "1"}, False),
            (True, {"NO_COLOR": "0"}, False),
            (True, {"TERM": "dumb"}, False),
            (False, {}, False),
        ],
    )
    @pytest.mark.parametrize("in_json", [False, True])
    def test_colour_is_for_a_terminal_that_wants_it_and_never_in_json(
        self,
        terminal: bool,
        variables: dict[str, str],
        coloured: bool,
        in_json: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        output = io.StringIO()
        monkeypatch.setattr(output, "isatty", lambda: terminal)
        monkeypatch.setattr("sys.stdout", output)
        report.report(FOUND, in_json)
        colours = {code for code in report.COLOURS.values() if code and code in output.getvalue()}
        assert len(colours) == (3 if coloured and not in_json else 0)


UNKNOWN = "echo unknown option -- G >&2; exit 1"  # before OpenSSH 9.3
MISSING = "echo Missing privilege separation directory: /run/sshd >&2; exit 255"
SSHD = [
    ("echo usepam yes", "ok", "UsePAM yes, as the service sshd", ""),
    ("echo usepam yes; echo pamservicename bastion", "ok", "as the service bastion", ""),
    ("echo UsePAM yes; echo PAMServiceName bastion", "ok", "as the service bastion", ""),  # 10.6
    ("echo UsePAM no", "error", "UsePAM is off", "sudo sed -i '1i UsePAM yes'"),
    (f'[ "$1" = -T ] || {{ {UNKNOWN}; }}; echo usepam yes', "ok", "UsePAM yes", ""),
    (f'[ "$1" = -G ] || {{ {MISSING}; }}; echo usepam yes', "ok", "UsePAM yes", ""),
    (
        f'[ "$1" = -T ] || {{ {UNKNOWN}; }}; {MISSING}',
        "warning",
        "sshd does not say whether UsePAM is on",
        "sudo install -d -m 755 /run/sshd",
    ),
    ("echo broken.conf line 1: Rubbish >&2; exit 255", "error", "broken.conf line 1", "sshd -t"),
    (None, "skipped", "not installed here", ""),
]


@pytest.mark.parametrize(("script", "severity", "message", "advice"), SSHD)
def test_whether_sshd_asks_pam_and_as_which_service(
    script: str | None,
    severity: str,
    message: str,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sshd = tmp_path / "sshd"
    if script:
        sshd.write_text(f"#!/bin/sh\n{script}\n")
        sshd.chmod(0o755)
    monkeypatch.setattr(check_sshd, "SSHD", str(sshd))
    check_sshd.sshd_settings.cache_clear()
    (found,) = check_sshd.sshd()
    check_sshd.sshd_settings.cache_clear()
    assert (found.id, found.severity) == ("sshd", severity)
    assert message in found.message
    assert advice in found.advice
