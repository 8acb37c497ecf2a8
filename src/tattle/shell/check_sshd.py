"""The probe of sshd: does it ask PAM, and as which service?"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Iterator

from tattle.errors import TattleError
from tattle.shell.finding import ERROR, OK, SKIPPED, WARNING, Finding, failed

SSHD = "/usr/sbin/sshd"
SSHD_SECONDS = 3.0


def sshd() -> Iterator[Finding]:
    """Look whether sshd asks PAM."""
    if not os.path.exists(SSHD):
        yield Finding("sshd", SKIPPED, "not installed here")
    elif os.geteuid() != 0:
        yield Finding("sshd", SKIPPED, "needs root")
    else:
        try:
            settings = sshd_settings()
        except TattleError as error:
            severity = WARNING if error.status == os.EX_UNAVAILABLE else ERROR
            yield failed("sshd", error)._replace(severity=severity)
            return
        if settings.get("usepam", "").lower() == "yes":
            yield Finding("sshd", OK, f"UsePAM yes, as the service {sshd_service()}")
        else:
            advice = (
                "sudo sed -i '1i UsePAM yes' /etc/ssh/sshd_config"
                " && { sudo systemctl reload ssh || sudo systemctl reload sshd; }"
            )
            yield Finding("sshd", ERROR, "UsePAM is off: sshd asks no PAM module", advice)


def sshd_service() -> str:
    """Return the name of sshd's PAM service: PAMServiceName, OpenSSH 9.8 and later."""
    try:
        return sshd_settings().get("pamservicename", "sshd")
    except (TattleError, OSError, subprocess.SubprocessError):
        return "sshd"


@functools.cache
def sshd_settings() -> dict[str, str]:
    """Return sshd's settings by their names in lower case, as sshd itself reads its configuration.

    Raises TattleError, OSError or subprocess.TimeoutExpired.
    """
    # -G (OpenSSH 9.3 and later) reads the configuration. -T asks for more that sshd needs to run.
    for option in ("-G", "-T"):
        done = subprocess.run(
            [SSHD, option], capture_output=True, text=True, timeout=SSHD_SECONDS, check=False
        )
        if done.returncode == 0:
            settings = [line.partition(" ") for line in done.stdout.splitlines()]
            return {name.lower(): value for name, _, value in settings}
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    missing = re.match("Missing privilege separation directory: (.*)", reason)
    if missing:  # nobody has connected yet, with sshd.socket
        raise TattleError(
            f"sshd does not say whether UsePAM is on: {reason}",
            os.EX_UNAVAILABLE,
            f"sudo install -d -m 755 {missing[1]}",
        )
    message = f"sshd {option} fails: {reason}"
    raise TattleError(message, os.EX_CONFIG, "fix that; `sudo sshd -t` checks it")
