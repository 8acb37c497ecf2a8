"""`tattle check`: find what keeps events from arriving, and say what to do about it.

Each probe stands alone, so that one that fails or hangs takes none of the others with it.
"""

from __future__ import annotations

import datetime
import email.utils
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tattle import TattleError, __version__
from tattle.config import Config, load
from tattle.detail import age
from tattle.files import trusted
from tattle.log import one_line
from tattle.records import REJECTED, Records, accepted_at
from tattle.session import Session
from tattle.spool import PATH, Spool

PAM_FOLDERS = (
    "/etc/pam.d",
    "/usr/lib/pam.d",
)  # pam.d(5); the second is the vendor's
PROBE_TIMEOUT = 10.0  # seconds, for each probe, all at once
TIMEOUT = 3.0  # seconds for a connection, and for an answer
LATE = 60.0  # seconds a record may wait without anything being wrong
CLOCK_TOLERANCE = 240.0  # seconds; Signature Version 4 allows five minutes
# What the dynamic loader, the C library and Python read before our first line, and would obey:
# ld.so(8), glibc's sysdeps/generic/unsecvars.h, CPython's Modules/getpath.py. A mend with pam_env
# has to unset all of it, as README's does.
UNSECURE = frozenset(
    """
    LD_ASSUME_KERNEL LD_AUDIT LD_BIND_NOT LD_BIND_NOW LD_DEBUG LD_DEBUG_OUTPUT LD_DYNAMIC_WEAK
    LD_HWCAP_MASK LD_LIBRARY_PATH LD_ORIGIN_PATH LD_PREFER_MAP_32BIT_EXEC LD_PRELOAD LD_PROFILE
    LD_PROFILE_OUTPUT LD_SHOW_AUXV LD_TRACE_LOADED_OBJECTS LD_TRACE_PRELINKING LD_USE_LOAD_BIAS
    LD_VERBOSE LD_WARN GLIBC_TUNABLES MALLOC_ARENA_MAX MALLOC_ARENA_TEST MALLOC_CHECK_
    MALLOC_MMAP_MAX_ MALLOC_MMAP_THRESHOLD_ MALLOC_PERTURB_ MALLOC_TOP_PAD_ MALLOC_TRACE
    MALLOC_TRIM_THRESHOLD_ GCONV_PATH GETCONF_DIR HOSTALIASES LOCALDOMAIN LOCPATH NIS_PATH NLSPATH
    RESOLV_HOST_CONF RES_OPTIONS TMPDIR TZ TZDIR PYTHONEXECUTABLE __PYVENV_LAUNCHER__
    """.split()  # noqa: SIM905
)


class Finding(NamedTuple):
    """What a probe found; `advice` says what to do where it is not good."""

    check: str
    ok: bool
    found: str
    advice: str = ""


class Line(NamedTuple):
    """A line of a PAM service's stack, with the file and the number it stands at."""

    file: str
    number: int
    kind: str
    module: str
    arguments: list[str]


def stack(service: str, kind: str = "", above: tuple[str, ...] = ()) -> Iterator[Line]:
    """Yield the lines of a service's stack in order, included ones too. See pam.d(5)."""
    folder = next((f for f in PAM_FOLDERS if Path(f, service).is_file()), None)
    if folder is None or service in above:
        return
    file, number = f"{folder}/{service}", 1
    for line in Path(file).read_text(errors="replace").replace("\\\n", "\v").split("\n"):
        words = line.replace("\v", " ").partition("#")[0]
        entry = re.match(r"\s*-?(\w+)\s+(\[.*?\]|\S+)\s+(\S+)(.*)", words)
        include = re.match(r"\s*@include\s+(\S+)", words)
        if include:
            yield from stack(include[1], kind, (*above, service))
        elif entry and kind in ("", entry[1].lower()):
            if entry[2].lower() in ("include", "substack"):
                yield from stack(entry[3], entry[1].lower(), (*above, service))
            else:
                module, arguments = os.path.basename(entry[3]), entry[4].split()
                yield Line(file, number, entry[1].lower(), module, arguments)
        number += 1 + line.count("\v")


def hooks(service: str) -> list[tuple[int, Line, str]]:
    """Return where a service's stack runs tattle: the place in the stack, the line, the path."""
    found = []
    for place, line in enumerate(stack(service)):
        path = next((word for word in line.arguments if word.startswith("/")), "")
        if line.module == "pam_exec.so" and "tattle" in os.path.basename(path):
            found.append((place, line, path))
    return found


def user_environment(service: str) -> list[tuple[int, Line]]:
    """Return the lines that let a user's ~/.pam_environment into the PAM environment."""
    return [
        (place, line)
        for place, line in enumerate(stack(service))
        if line.module == "pam_env.so" and _last_number("user_readenv=", line.arguments)
    ]


def _last_number(option: str, arguments: list[str]) -> int:
    """Return what an option is set to, as pam_env reads it: atoi(3), the last one counts."""
    values = [word[len(option) :] for word in arguments if word.startswith(option)]
    digits = re.match(r"[+-]?\d+", values[-1]) if values else None
    return int(digits[0]) if digits else 0


def unset_before_hook(service: str) -> bool:
    """Tell whether pam_env unsets what the loader obeys, after all else and before the hook."""
    opened = [place for place, _ in user_environment(service)]
    for place, line in enumerate(stack(service)):
        files = [word[9:] for word in line.arguments if word.startswith("conffile=")]
        if line.module == "pam_env.so" and line.kind == "session" and files and place > max(opened):
            try:
                text = Path(trusted(files[0])).read_text(errors="replace")
            except (OSError, TattleError):
                continue
            unset = set(re.findall(r"^(\w+)\s+DEFAULT=\s+OVERRIDE=\s*$", text, re.MULTILINE))
            return unset >= UNSECURE and all(place < hook for hook, _, _ in hooks(service))
    return False


def believed(session: Session) -> bool:
    """Tell whether what sshd said of a session's connection can't have been put there by its user.

    What let users in may have been mended since; so nothing of the stack may have changed since the
    session's process started.
    """
    lines = list(stack(session.pam["PAM_SERVICE"]))
    if not lines or user_environment(session.pam["PAM_SERVICE"]):
        return False
    try:
        began = int(session.moment["TATTLE_TIME"]) / 1e9 - (age(session) or 0)
        return all(os.stat(file).st_ctime < began for file in {line.file for line in lines})
    except (OSError, KeyError, ValueError):
        return False


def versions() -> Iterator[Finding]:
    import botocore
    from urllib3._version import __version__ as urllib3_version

    python = ".".join(map(str, sys.version_info[:3]))
    bundled = f"botocore {botocore.__version__}, urllib3 {urllib3_version}"
    yield Finding("versions", True, f"tattle {__version__}, Python {python}, {bundled}")
    if os.geteuid() != 0:
        advice = "run it as root: sudo tattle check"
        yield Finding("user", False, "not root: what only root may see is missing here", advice)


def pam(config: Config) -> Iterator[Finding]:
    own = os.path.realpath(sys.argv[0])
    services = {"sshd", *config.services}
    for folder in PAM_FOLDERS:
        if os.path.isdir(folder):
            services |= {name for name in os.listdir(folder) if hooks(name)}
    for service in sorted(services):
        found = hooks(service)
        if not found:
            line = f"session    optional     pam_exec.so {own}"
            advice = f"echo '{line}' >> /etc/pam.d/{service}"
            yield Finding(f"pam {service}", False, "no line runs tattle", advice)
        for _, at, path in found:
            yield _hook_line(service, at, path, own)
        if len(found) > 1:
            places = ", ".join(f"{at.file}:{at.number}" for _, at, _ in found)
            told = f"runs tattle more than once: each session is told as often ({places})"
            yield Finding(f"pam {service}", False, told, "remove all of these lines but one")
        if found:
            yield from _environment_hole(service)


def _hook_line(service: str, line: Line, path: str, own: str) -> Finding:
    where, name = f"{line.file}:{line.number}", f"pam {service}"
    if line.kind != "session":
        advice = f"make it a session line: sed -i '{line.number}s/{line.kind}/session/' {line.file}"
        return Finding(name, False, f"{where} runs tattle for {line.kind}, not for session", advice)
    try:
        if not os.access(trusted(path), os.X_OK):
            return Finding(name, False, f"{path} is not executable", f"chmod 755 {path}")
    except FileNotFoundError:
        advice = f"install tattle there: install -m 755 {own} {path}"
        return Finding(name, False, f"{where} runs {path}, which does not exist", advice)
    except TattleError as error:
        return Finding(name, False, str(error), f"chown root: {path}; chmod 755 {path}")
    if os.path.realpath(path) != own:
        advice = f"if this one is meant: install -m 755 {own} {path}"
        return Finding(name, False, f"{where} runs {path}, another file than this, {own}", advice)
    return Finding(name, True, f"{where} runs {path} for {line.kind}")


def _environment_hole(service: str) -> Iterator[Finding]:
    name = f"user environment {service}"
    lines = user_environment(service)
    if not lines:
        yield Finding(name, True, "no user can put variables into the hook's environment")
    elif unset_before_hook(service):
        found = "users can set variables, but none that the loader obeys"
        advice = "better still: no user_readenv=1; enough variables keep the hook from starting"
        yield Finding(name, True, found, advice)
    else:
        for _, line in lines:
            found = (
                f"{line.file}:{line.number} has user_readenv=1: who logs in can run code as root"
                " (LD_PRELOAD in ~/.pam_environment)"
            )
            advice = f"sed -i '{line.number}s/ *user_readenv=[^ ]*//' {line.file}"
            yield Finding(name, False, found, advice)


def sshd() -> Iterator[Finding]:
    command = ["/usr/sbin/sshd", "-T"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        told = one_line(
            done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason"
        )
        yield Finding("sshd", False, f"sshd -T fails: {told}", "mend sshd's configuration")
    elif re.search(r"^usepam yes$", done.stdout, re.MULTILINE):
        yield Finding("sshd", True, "UsePAM yes")
    else:
        advice = "sed -i '1i UsePAM yes' /etc/ssh/sshd_config && systemctl reload ssh*"
        yield Finding("sshd", False, "UsePAM is off: sshd asks no PAM module", advice)


def spool() -> Iterator[Finding]:
    if not os.path.lexists(PATH):
        yield Finding("spool", True, f"no {PATH} yet: no login since the installation")
        return
    try:
        names = Records(Spool()).waiting()
    except (OSError, TattleError) as error:
        advice = f"chown root: {PATH}; chmod 700 {PATH} (a symbolic link: remove it)"
        yield Finding("spool", False, str(error), advice)
        return
    age = time.time() - accepted_at(names[0]) if names else 0.0
    waiting = f"{len(names)} waiting" + (f", the oldest for {age:.0f} s" if names else "")
    if age > LATE:
        yield Finding("spool", False, waiting, "mend what else is wrong, then: tattle flush")
    else:
        yield Finding("spool", True, waiting)
    rejected = f"{PATH}/{REJECTED}"
    if os.path.isdir(rejected) and os.listdir(rejected):
        advice = f"the log says why (journalctl -t tattle); look, then empty {rejected}"
        yield Finding("rejected", False, f"{len(os.listdir(rejected))} in {rejected}", advice)


def configuration() -> Iterator[Finding]:
    try:
        config = load()
    except TattleError as error:
        yield Finding("configuration", False, str(error), "mend that line")
    else:
        changed = config != Config()
        yield Finding("configuration", True, "as configured" if changed else "the defaults")


def identity(config: Config) -> Iterator[Finding]:
    from tattle.events import Publisher

    try:
        publisher = Publisher(config, 1, TIMEOUT)
    except TattleError as error:
        advice = (
            "on EC2: aws ec2 modify-instance-metadata-options --http-endpoint enabled;"
            " elsewhere: set `resource` and `region` in /etc/tattle.conf"
        )
        yield Finding("identity", False, str(error), advice)
    else:
        yield Finding("identity", True, publisher.resource)


def role() -> Iterator[Finding]:
    from tattle.events import aws_session, faults

    session, metadata = aws_session()
    try:
        with faults(metadata):
            credentials = session.get_credentials()
    except TattleError as error:
        credentials, fault = None, str(error)
    else:
        fault = f"no credentials: {metadata.fault()}"
    if credentials is None:
        advice = "attach an instance profile whose role allows events:PutEvents"
        yield Finding("role", False, fault, advice)
        return
    expiry = getattr(credentials, "_expiry_time", None)
    found = f"credentials from {credentials.method}"
    if expiry is None:
        yield Finding("role", True, found)
        return
    left = (expiry - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    advice = "is the clock right? detach the instance profile and attach it again"
    yield Finding("role", left > 0, f"{found}, valid for {left / 60:.0f} min", advice * (left <= 0))


def endpoint(config: Config) -> Iterator[Finding]:
    from botocore.awsrequest import AWSRequest
    from botocore.exceptions import BotoCoreError
    from botocore.httpsession import URLLib3Session

    from tattle.events import Publisher, proxies

    publisher = Publisher(config, 1, TIMEOUT)
    url = publisher.client.meta.endpoint_url
    host = urllib.parse.urlsplit(url).hostname or ""
    if not config.proxy:
        try:
            addresses = {str(address[4][0]) for address in socket.getaddrinfo(host, None)}
        except OSError as error:
            advice = f"name resolution: getent hosts {host}; a VPC needs enableDnsSupport"
            yield Finding("endpoint", False, f"{host} does not resolve: {error.strerror}", advice)
            return
        yield Finding("name", True, f"{host} is {', '.join(sorted(addresses)[:3])}")
    verify = config.ca_bundle or publisher.aws.get_config_variable("ca_bundle") or True
    http = URLLib3Session(verify=verify, proxies=proxies(config), timeout=TIMEOUT)
    try:
        answer = http.send(AWSRequest("GET", url).prepare())
    except BotoCoreError as error:
        advice = (
            "`ca-bundle` in /etc/tattle.conf must name the authority that signed it"
            if "SSL" in type(error).__name__
            else "security group, route, VPC endpoint? Through a proxy: `proxy` in /etc/tattle.conf"
        )
        yield Finding("endpoint", False, str(error), advice)
        return
    yield Finding("endpoint", True, f"{url} answers")
    date = answer.headers.get("Date")
    if date:
        skew = time.time() - email.utils.parsedate_to_datetime(date).timestamp()
        ok = abs(skew) < CLOCK_TOLERANCE
        word = "ahead of" if skew > 0 else "behind"
        found = f"{abs(skew):.0f} s {word} EventBridge's"
        yield Finding("clock", ok, found, "" if ok else "set the clock: chronyc makestep")


def send(config: Config) -> Iterator[Finding]:
    from tattle.events import Publisher

    try:
        publisher = Publisher(config, 2, TIMEOUT)
        entry = {
            "Time": datetime.datetime.now(datetime.timezone.utc),
            "Source": config.source,
            "Resources": [publisher.resource],
            "DetailType": "tattle check",
            "Detail": json.dumps({"hostname": socket.gethostname()}),
        }
        if config.event_bus:
            entry["EventBusName"] = config.event_bus
        (result,) = publisher.publish([entry])
        if result.error:
            raise result.error
    except TattleError as error:
        yield Finding("send", False, str(error), "see what else is wrong above")
    else:
        yield Finding(
            "send", True, f"sent an event of detail-type `tattle check`: {result.event_id}"
        )


def findings(sending: bool) -> list[Finding]:
    """Run every probe at once, and return what they found in a fixed order."""
    try:
        config = load()
    except TattleError:
        config = Config()
    probes: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", versions),
        ("pam", lambda: pam(config)),
        ("sshd", sshd),
        ("spool", spool),
        ("configuration", configuration),
        ("identity", lambda: identity(config)),
        ("role", role),
        ("endpoint", lambda: endpoint(config)),
    ]
    if sending:
        probes.append(("send", lambda: send(config)))
    found: list[list[Finding]] = [[] for _ in probes]

    def run(place: int) -> None:
        name, probe = probes[place]
        try:
            for finding in probe():
                found[place].append(finding)
        except Exception as error:
            kind = "" if isinstance(error, TattleError) else f"{type(error).__name__}: "
            told = f"can't be checked: {kind}{error}"
            found[place].append(
                Finding(name, False, told, "mend what else is wrong, then try again")
            )

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(len(probes))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + PROBE_TIMEOUT
    for place, thread in enumerate(threads):
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            told = f"no result within {PROBE_TIMEOUT:.0f} s"
            found[place].append(Finding(probes[place][0], False, told, "name server? network?"))
    return [finding for findings in found for finding in findings]


def report(found: list[Finding], as_json: bool) -> int:
    """Print the findings, for a person or a machine; return the exit status."""
    if as_json:
        print(json.dumps([finding._asdict() for finding in found], indent=2))
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        good, bad = ("\033[32m✓\033[0m", "\033[31m✗\033[0m") if colour else ("✓", "✗")
        for finding in found:
            print(f"{good if finding.ok else bad} {finding.check}: {one_line(finding.found)}")
            if finding.advice:
                print(f"    → {one_line(finding.advice)}")
    return 0 if all(finding.ok for finding in found) else 1


def main(sending: bool, as_json: bool) -> int:
    """Check, and say what was found. Return 0 if all is well, else 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no ✓
    status = report(findings(sending), as_json)
    sys.stdout.flush()
    os._exit(status)  # a probe that hangs would keep the interpreter
