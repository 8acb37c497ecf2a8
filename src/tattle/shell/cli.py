"""The command line: the smoke test, `tattle flush`, `tattle check`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import time
from typing import NoReturn

from tattle import __version__
from tattle.errors import TattleError, one_line
from tattle.unpack import unpack

# What --debug lets speak: botocore's other loggers print credentials and tokens.
TELLING = (
    "urllib3.connectionpool",
    "botocore.configprovider",
    "botocore.regions",
    "botocore.retries",
)
PATIENCE = 8.0  # seconds that the smoke test takes at most, whatever hangs
TIMEOUT = 3.0  # seconds for a connection, and for an answer, where somebody waits


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit status."""
    options = parser().parse_args(arguments)
    if options.debug:
        logging.basicConfig(format="%(name)s: %(message)s")
        for name in TELLING:
            logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        return int(options.command(options))
    except TattleError as error:
        print(f"tattle: {one_line(str(error))}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if options.debug:
            raise
        fault = one_line(f"{type(error).__name__}: {error}")
        print(f"tattle: a defect of tattle's: {fault} (--debug says more)", file=sys.stderr)
        return os.EX_SOFTWARE


def parser() -> Parser:
    """Return the command line's grammar."""
    top = Parser(
        prog="tattle",
        description="Report SSH logins and logouts to Amazon EventBridge. Without a command:"
        " the smoke test, which publishes the session that PAM_TYPE, PAM_USER and PAM_RHOST name.",
        epilog="Exit status, as in sysexits(3): 64 wrong usage, 69 IMDS or EventBridge unreachable,"
        " 75 try again later, 77 no role or not allowed, 78 configuration."
        " Files: /etc/tattle.conf, /var/spool/tattle, root's ~/.aws/config."
        " PAM runs it by the line: session optional pam_exec.so /usr/local/bin/tattle",
    )
    top.add_argument("--version", action="version", version=f"tattle {__version__}")
    top.add_argument("--debug", action="store_true", help="say what happens on the way")
    top.add_argument("--dry-run", action="store_true", help="print the event, send nothing")
    top.set_defaults(command=smoke_test)
    commands = top.add_subparsers(title="commands", metavar="[COMMAND]")
    flushing = commands.add_parser("flush", help="send what waits in the spool")
    flushing.set_defaults(command=flush)
    checking = commands.add_parser("check", help="find what keeps events from arriving")
    checking.add_argument("--send", action="store_true", help="publish an event, too")
    checking.add_argument("--json", action="store_true", help="for machines")
    checking.set_defaults(command=check)
    return top


def smoke_test(options: argparse.Namespace) -> int:
    """Publish the session event that the caller's environment tells of."""
    from tattle.login.pam import parse

    variables = b"\0".join(
        name + b"=" + value for name, value in os.environb.items() if name.startswith(b"PAM_")
    )
    session = parse(variables, {"TATTLE_TIME": str(time.time_ns())})
    os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:2")  # resolv.conf(5)
    unpack()
    from tattle.delivery.config import load
    from tattle.delivery.events import Publisher

    waiting_for = "IMDS"
    watchdog = threading.Timer(PATIENCE, lambda: give_up(waiting_for))
    watchdog.daemon = True
    watchdog.start()
    publisher = Publisher(load(), TIMEOUT)
    url = publisher.client.meta.endpoint_url
    waiting_for = f"EventBridge at {url}; the event may have arrived"
    entry = publisher.entry(session, lambda _: False)
    if options.dry_run:
        print(json.dumps({**entry, "Time": entry["Time"].isoformat()}, indent=2))
        return 0
    event_id = publisher.send(entry)
    watchdog.cancel()
    user = one_line(session.pam["PAM_USER"])
    print(f"sent: session {session.state} for {user}, event id {event_id}")
    return 0


def give_up(waiting_for: str) -> None:
    """End the process, which hangs in a place that no time-out reaches: a dead name server, say."""
    print(
        f"tattle: no answer within {PATIENCE:.0f} s from {waiting_for}", file=sys.stderr, flush=True
    )
    os._exit(os.EX_UNAVAILABLE)


class Parser(argparse.ArgumentParser):
    """argparse, with the exit status of sysexits(3)."""

    def error(self, message: str) -> NoReturn:
        self.exit(os.EX_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def flush(options: argparse.Namespace) -> int:
    """Have delivered what waits in the spool, and say how that went."""
    from tattle.shell import flush

    return flush.main()


def check(options: argparse.Namespace) -> int:
    """Find what keeps events from arriving."""
    unpack()
    from tattle.shell import check

    return check.main(options.send, options.json)
