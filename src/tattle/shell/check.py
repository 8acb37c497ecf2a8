"""`tattle check`: find what keeps events from arriving, and say what to do about it.

Each probe stands alone, so that one that fails or hangs takes none of the others with it.
"""

from __future__ import annotations

import datetime
import email.utils
import filecmp
import io
import json
import locale
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import botocore
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError
from botocore.httpsession import URLLib3Session
from urllib3._version import __version__ as urllib3_version

from tattle import __version__
from tattle.delivery.config import PATH as CONFIG
from tattle.delivery.config import Config, load
from tattle.delivery.events import Publisher, arn, aws_session, faults, proxies
from tattle.delivery.pamd import Line, Stack, services
from tattle.errors import TattleError, one_line
from tattle.login.spool import PATH, REJECTED, Spool, accepted_at
from tattle.trust import trusted

SSHD = "/usr/sbin/sshd"
PROBE_TIMEOUT = 10.0  # seconds, for all probes at once
TIMEOUT = 3.0  # seconds for a connection, and for an answer
LATE = 60.0  # seconds a record may wait without anything being wrong
CLOCK_TOLERANCE = 240.0  # seconds; Signature Version 4 allows five minutes
LATER = "mend what else is wrong, then try again"


class Finding(NamedTuple):
    """What a probe found; `advice` says what to do where it is not good."""

    check: str
    ok: bool
    found: str
    advice: str = ""


def versions() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    bundled = f"botocore {botocore.__version__}, urllib3 {urllib3_version}"
    yield Finding("versions", True, f"tattle {__version__}, Python {python}, {bundled}")
    if os.geteuid() != 0:
        told = "not root: spool and sshd can't be looked into"
        yield Finding("user", False, told, f"sudo {os.path.realpath(sys.argv[0])} check")


def pam(config: Config) -> Iterator[Finding]:
    running = services()
    expected = {"sshd"} if os.path.exists(SSHD) or not running else set()
    for service in sorted({*running, *expected, *config.services}):
        stack = Stack(service)
        hooks = stack.hooks()
        if not hooks:
            line = f"session    optional     pam_exec.so {os.path.realpath(sys.argv[0])}"
            advice = f"echo '{line}' >> /etc/pam.d/{service}"
            yield Finding(f"pam {service}", False, "no line runs tattle", advice)
            continue
        for _, line_of_ours, path in hooks:
            yield hook_line(service, line_of_ours, path)
        if len(hooks) > 1:
            places = ", ".join(f"{line.file}:{line.number}" for _, line, _ in hooks)
            told = f"runs tattle more than once, so each session is told as often: {places}"
            yield Finding(f"pam {service}", False, told, "remove all of these lines but one")
        yield from environment(service, stack)


def hook_line(service: str, line: Line, path: str) -> Finding:
    where, name, own = f"{line.file}:{line.number}", f"pam {service}", os.path.realpath(sys.argv[0])
    half = next((word for word in line.arguments if word.startswith("type=")), "")
    if line.kind != "session":
        advice = f"sed -i '{line.number}s/{line.kind}/session/' {line.file}"
        return Finding(name, False, f"{where} runs tattle for {line.kind}, not for session", advice)
    if half:
        advice = f"sed -i '{line.number}s/ {half}//' {line.file}"
        return Finding(name, False, f"{where} has {half}: half of the events are missing", advice)
    try:
        if not os.access(trusted(path), os.X_OK):
            return Finding(name, False, f"{path} is not executable", f"chmod 755 {path}")
        if not filecmp.cmp(path, own, shallow=False):
            told = f"{where} runs {path}, which is not the same as this one, {own}"
            return Finding(name, False, told, f"install -m 755 {own} {path}")
    except FileNotFoundError:
        told = f"{where} runs {path}, which does not exist"
        return Finding(name, False, told, f"install -m 755 {own} {path}")
    except TattleError as error:
        return Finding(name, False, str(error), mend(error, LATER))
    return Finding(name, True, f"{where} runs {path}")


def environment(service: str, stack: Stack) -> Iterator[Finding]:
    name = f"user environment {service}"
    if not stack.openings():
        yield Finding(name, True, "no user can put variables into the hook's environment")
    elif stack.unset_before_hook():
        told = "users can set variables, but none that the loader obeys"
        advice = "better still, no user_readenv: enough variables keep the hook from starting"
        yield Finding(name, True, told, advice)
    else:
        for _, line in stack.openings():
            told = (
                f"{line.file}:{line.number} reads ~/.pam_environment: who logs in can run code as"
                " root (LD_PRELOAD)"
            )
            option = next(w for w in line.arguments if w.startswith("user_readenv="))
            lines = str(line.number) if line.number == line.last else f"{line.number},{line.last}"
            advice = f"sed -i '{lines}s/ *{option}//' {line.file}"
            yield Finding(name, False, told, advice)


def sshd() -> Iterator[Finding]:
    if not os.path.exists(SSHD):
        yield Finding("sshd", True, "not installed here")
    elif os.geteuid() == 0:
        command = [SSHD, "-T"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if done.returncode:
            told = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            yield Finding("sshd", False, f"sshd -T fails: {told}", "mend sshd's configuration")
        elif re.search(r"^usepam yes$", done.stdout, re.MULTILINE):
            yield Finding("sshd", True, "UsePAM yes")
        else:
            advice = (
                "sed -i '1i UsePAM yes' /etc/ssh/sshd_config &&"
                " { systemctl reload ssh || systemctl reload sshd; }"
            )
            yield Finding("sshd", False, "UsePAM is off: sshd asks no PAM module", advice)


def spool() -> Iterator[Finding]:
    if os.geteuid() != 0:
        return
    there = os.path.lexists(PATH)
    above = os.path.dirname(PATH)
    disk = os.statvfs(PATH if there and not os.path.islink(PATH) else above)
    if disk.f_flag & os.ST_RDONLY:
        yield Finding("disk", False, f"{above} is read-only", f"mount -o remount,rw {above}")
    elif not disk.f_bavail or (disk.f_files and not disk.f_favail):
        yield Finding("disk", False, f"{above} is full", f"make room there: df {above}")
    if not there:
        yield Finding("spool", True, f"no {PATH} yet: no login since the installation")
        return
    try:
        names = Spool().waiting()
    except TattleError as error:
        yield Finding("spool", False, str(error), mend(error, LATER))
        return
    except OSError as error:
        told = f"{PATH} is no folder of its own: {error.strerror}"
        yield Finding("spool", False, told, f"rm {PATH}")
        return
    age = time.time() - accepted_at(names[0]) if names else 0.0
    told = f"{len(names)} waiting" + (f", the oldest for {age:.0f} s" if names else "")
    advice = "mend what else is wrong, then: tattle flush" if age > LATE else ""
    yield Finding("spool", age <= LATE, told, advice)
    rejected = f"{PATH}/{REJECTED}"
    if os.path.isdir(rejected) and os.listdir(rejected):
        advice = f"the log says why (journalctl -t tattle); then: rm -r {rejected}"
        yield Finding("rejected", False, f"{len(os.listdir(rejected))} in {rejected}", advice)


def configuration() -> Iterator[Finding]:
    try:
        config = load()
    except TattleError as error:
        yield Finding("configuration", False, str(error), mend(error, "mend that line"))
    else:
        if config == Config():
            yield Finding("configuration", True, "the defaults")
        else:
            told = f"{CONFIG}, with services: {', '.join(config.services) or 'none of their own'}"
            yield Finding("configuration", True, told)


def identity(config: Config) -> Iterator[Finding]:
    try:
        session, metadata = aws_session()
        told = config.resource or arn(session, metadata, metadata.identity())
    except TattleError as error:
        otherwise = (
            "on EC2: aws ec2 modify-instance-metadata-options --http-endpoint enabled;"
            f" elsewhere: set `resource` and `region` in {CONFIG}"
        )
        advice = otherwise if error.status == os.EX_UNAVAILABLE else "mend root's ~/.aws/config"
        yield Finding("identity", False, str(error), mend(error, advice))
    else:
        yield Finding("identity", True, told)


def role() -> Iterator[Finding]:
    try:
        session, metadata = aws_session()
        with faults(metadata):
            credentials = session.get_credentials()
        if credentials is None:
            raise TattleError(f"no credentials: {metadata.fault()}", os.EX_NOPERM)
    except TattleError as error:
        advice = "attach an instance profile whose role allows events:PutEvents"
        if "AssumeRole" in str(error):
            advice = "the role's trust policy must let ec2.amazonaws.com assume it"
        elif error.status == os.EX_CONFIG:
            advice = "mend root's ~/.aws/config"
        yield Finding("role", False, str(error), mend(error, advice))
        return
    found = f"credentials from {credentials.method}"
    if not metadata.expiration:
        yield Finding("role", True, found)
        return
    # Not botocore's own expiry, which it extends when IMDS gives credentials that are too old.
    expiry = datetime.datetime.strptime(metadata.expiration, "%Y-%m-%dT%H:%M:%S%z")
    left = (expiry - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    if left > 0:
        yield Finding("role", True, f"{found}, valid for {left / 3600:.1f} h")
    else:
        advice = "is the clock right? else detach the instance profile and attach it again"
        yield Finding("role", False, f"{found}, expired {-left / 60:.0f} min ago", advice)


def endpoint(config: Config) -> Iterator[Finding]:
    try:
        publisher = Publisher(config, TIMEOUT)
    except TattleError as error:
        advice = f"mend {CONFIG}" if error.status == os.EX_CONFIG else LATER
        yield Finding("endpoint", False, f"can't be checked: {error}", mend(error, advice))
        return
    url = publisher.client.meta.endpoint_url
    host = urllib.parse.urlsplit(url).hostname or ""
    if not config.proxy:
        try:
            addresses = {str(address[4][0]) for address in socket.getaddrinfo(host, None)}
        except OSError as error:
            told = f"{host} does not resolve: {error.strerror}"
            advice = f"try: getent hosts {host}; a VPC needs enableDnsSupport"
            yield Finding("endpoint", False, told, advice)
            return
        yield Finding("name", True, f"{host} resolves to {', '.join(sorted(addresses)[:3])}")
    verify = config.ca_bundle or publisher.aws.get_config_variable("ca_bundle") or True
    http = URLLib3Session(verify=verify, proxies=proxies(config), timeout=TIMEOUT)
    try:
        answer = http.send(AWSRequest("GET", url).prepare())
    except BotoCoreError as error:
        yield Finding("endpoint", False, str(error), unreachable(error))
        return
    yield Finding("endpoint", True, f"{url} answers")
    date = answer.headers.get("Date")
    if date:
        skew = time.time() - email.utils.parsedate_to_datetime(date).timestamp()
        told = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} EventBridge's"
        ok = abs(skew) < CLOCK_TOLERANCE
        yield Finding("clock", ok, told, "" if ok else "set the clock: chronyc makestep")


def unreachable(error: BotoCoreError) -> str:
    """Return what to do about a connection that did not come about."""
    told = str(error)
    if "expired" in told or "not yet valid" in told:
        return "is the clock right? else whoever runs the endpoint must renew its certificate"
    if "doesn't match" in told or "Hostname mismatch" in told:
        return f"`endpoint-url` in {CONFIG} must name the host that the certificate names"
    if "CERTIFICATE" in told or "SSL" in told:
        return f"`ca-bundle` in {CONFIG} must name the authority that signed the certificate"
    return f"security group, route, VPC endpoint? Through a proxy: `proxy` in {CONFIG}"


def send(config: Config) -> Iterator[Finding]:
    publisher = Publisher(config, TIMEOUT)
    for bus in config.buses():
        entry = {
            "Time": datetime.datetime.now(datetime.timezone.utc),
            "Source": config.source,
            "Resources": [publisher.resource],
            "DetailType": "tattle check",
            "Detail": json.dumps({"hostname": socket.gethostname()}),
        }
        if bus:
            entry["EventBusName"] = bus
        try:
            event_id = publisher.send(entry)
        except TattleError as error:
            yield Finding("send", False, str(error), error.advice)
        else:
            to = f" to {bus}" if bus else ""
            found = f"sent an event of detail-type `tattle check`{to}: {event_id}"
            yield Finding("send", True, found)


def mend(error: TattleError, otherwise: str) -> str:
    """Return what the error advises, else something more general."""
    cause = error.__cause__
    if not error.advice and isinstance(cause, TattleError):
        return cause.advice or otherwise
    return error.advice or otherwise


def findings(sending: bool) -> list[Finding]:
    """Run every probe at once, and return what they found in a fixed order."""
    try:
        config = load()
    except TattleError:
        config = Config()
    probes: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": versions,
        "pam": lambda: pam(config),
        "sshd": sshd,
        "spool": spool,
        "configuration": configuration,
        "identity": lambda: identity(config),
        "role": role,
        "endpoint": lambda: endpoint(config),
    }
    if sending:
        probes["send"] = lambda: send(config)
    found: dict[str, list[Finding]] = {name: [] for name in probes}

    def run(name: str) -> None:
        try:
            for finding in probes[name]():
                found[name].append(finding)
        except Exception as error:
            kind = "" if isinstance(error, TattleError) else f"{type(error).__name__}: "
            found[name].append(Finding(name, False, f"can't be checked: {kind}{error}", LATER))

    threads = {n: threading.Thread(target=run, args=(n,), daemon=True) for n in probes}
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + PROBE_TIMEOUT
    for name, thread in threads.items():
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            told = f"no result within {PROBE_TIMEOUT:.0f} s"
            found[name].append(Finding(name, False, told, "is a name server dead? a network?"))
    return [finding for name in probes for finding in found[name]]


def report(found: list[Finding], as_json: bool) -> int:
    """Print the findings, for a person or a machine; return the exit status."""
    if as_json:
        print(json.dumps([finding._asdict() for finding in found], indent=2))
    else:
        good, bad, arrow = "✓", "✗", "→"
        try:  # Python speaks UTF-8 whatever the terminal does: it was started so
            locale.setlocale(locale.LC_CTYPE, "")
            (good + bad + arrow).encode(locale.nl_langinfo(locale.CODESET))
        except (locale.Error, LookupError, UnicodeEncodeError):
            good, bad, arrow = "ok", "NO", "->"
        if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            good, bad = f"\033[32m{good}\033[0m", f"\033[31m{bad}\033[0m"
        for finding in found:
            print(f"{good if finding.ok else bad} {finding.check}: {one_line(finding.found)}")
            if finding.advice:
                print(f"    {arrow} {one_line(finding.advice)}")
    return 0 if all(finding.ok for finding in found) else 1


def main(sending: bool, as_json: bool) -> int:
    """Check, and say what was found. Return 0 if all is well, else 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    status = report(findings(sending), as_json)
    sys.stdout.flush()
    os._exit(status)  # a probe that hangs would keep the interpreter
