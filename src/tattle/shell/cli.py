"""The command line: the smoke test, `tattle flush`, `tattle check`, `tattle recipe`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, NoReturn

from tattle.errors import TattleError, defect, one_line, runnable
from tattle.unpack import repair, unpack

if TYPE_CHECKING:
    from tattle.aws.eventbridge import Entry

# What --debug shows: botocore's other loggers print credentials and tokens.
LOGGERS = (
    "urllib3.connectionpool",
    "botocore.configprovider",
    "botocore.regions",
    "botocore.retries",
)
SMOKE_TEST_SECONDS = 8.0  # that the smoke test takes at most, whatever hangs
NO_ID = "00000000-0000-0000-0000-000000000000"  # EventBridge gives each event its own
NO_ACCOUNT = "000000000000"  # where `resource` is set, and is no ARN


def main(arguments: list[str]) -> int:
    """Do what the command line says and return the exit status."""
    warnings.simplefilter("ignore")  # urllib3 warns of a clock that is far off: check says so
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us: >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        try:
            status = run(arguments)
        except SystemExit as end:  # argparse's, after --help for one
            status = int(end.code or 0)
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # else who reads it has seen enough
            print_error(TattleError(f"can't write the output: {error.strerror}", os.EX_IOERR))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more
        status = os.EX_IOERR
    return status


def run(arguments: list[str]) -> int:
    """Run the command; return the exit status. Raises OSError if the output can't be written."""
    grammar = parser()
    options = grammar.parse_args(arguments)
    if options.version:
        from tattle.shell.version import version

        print(version())
        return 0
    if options.dry_run and options.command is not smoke_test:
        grammar.error("--dry-run goes with the smoke test alone, and with no command")
    if options.debug:
        logging.basicConfig(format="%(name)s: %(message)s")
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        return attempt(options)
    except TattleError as error:
        print_error(error)
        return error.status
    except Exception as error:
        sys.stdout.flush()  # raises again what the output raised
        if options.debug:
            raise
        print_error(defect(error))
        return os.EX_SOFTWARE


def print_error(error: TattleError) -> None:
    """Print what is wrong, and what to do about it, in one line."""
    advice = f" → {one_line(runnable(error.advice))}" if error.advice else ""
    print(f"tattle: {one_line(str(error))}{advice}", file=sys.stderr, flush=True)


def attempt(options: argparse.Namespace) -> int:
    """Run the command; if it fails over a damaged unpacked build, begin anew."""
    try:
        return int(options.command(options))
    except Exception:
        begin_anew_if_damaged()
        raise


def begin_anew_if_damaged() -> None:
    """Repair the unpacked build if it is damaged, and run the same command again."""
    if repair():
        os.execv(os.path.abspath(sys.argv[0]), sys.argv)


def parser() -> Parser:
    """Return the command line's grammar."""
    top = Parser(
        prog="tattle",
        description="Report SSH logins and logouts to Amazon EventBridge. Without a command:"
        " the smoke test, which publishes the session that PAM_TYPE, PAM_USER and PAM_RHOST name.",
        epilog="Exit status, as in sysexits(3): 64 wrong usage, 69 IMDS or EventBridge unreachable,"
        " 75 try again later, 77 no role or not allowed, 78 configuration."
        " Files: /etc/tattle.conf, /var/spool/tattle, root's ~/.aws/config."
        " PAM runs it by the line: session optional pam_exec.so /usr/local/bin/tattle"
        " [--wait[=SECONDS]]. With --wait the login waits until EventBridge has the event, 5 s at"
        " most or as many seconds as are given.",
    )
    top.add_argument("--version", action="store_true", help="print version and build")
    top.add_argument("--debug", action="store_true", help="log requests and settings")
    top.add_argument(
        "--dry-run", action="store_true", help="print the smoke test's event, send nothing"
    )
    top.set_defaults(command=smoke_test)
    commands = top.add_subparsers(title="commands", metavar="[COMMAND]")
    flushing = commands.add_parser("flush", help="send what waits in the spool")
    flushing.set_defaults(command=flush)
    checking = commands.add_parser(
        "check",
        help="find what keeps events from arriving",
        epilog="Exit status: 0 all is well, 1 something is wrong, 2 there are only warnings.",
    )
    checking.add_argument("--send", action="store_true", help="publish an event, too")
    checking.add_argument("--json", action="store_true", help="print JSON")
    checking.set_defaults(command=check)
    recipes = commands.add_parser("recipe", help="list the recipes, or print one")
    recipes.add_argument("name", nargs="?", metavar="NAME", help="the recipe to print")
    recipes.set_defaults(command=recipe)
    return top


class Parser(argparse.ArgumentParser):
    """argparse, with the exit status of sysexits(3)."""

    def error(self, message: str) -> NoReturn:
        self.exit(os.EX_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def smoke_test(options: argparse.Namespace) -> int:
    """Publish the session event that the caller's environment describes."""
    from tattle.login.pam import parse

    variables = b"\0".join(
        name + b"=" + value for name, value in os.environb.items() if name.startswith(b"PAM_")
    )
    session = parse(variables, {"TATTLE_TIME": str(time.time_ns())})
    os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:2")  # resolv.conf(5)
    unpack()
    from tattle.aws.credentials import find_credentials
    from tattle.aws.eventbridge import INTERACTIVE_TIMEOUT, Publisher
    from tattle.event.config import load

    waiting_for = "IMDS, or STS for a role"
    watchdog = threading.Timer(SMOKE_TEST_SECONDS, lambda: give_up(waiting_for))
    watchdog.daemon = True
    watchdog.start()
    publisher = Publisher(load(), INTERACTIVE_TIMEOUT)
    entry = publisher.entry(session, lambda _: False)
    if options.dry_run:
        account = publisher.document.get("accountId", NO_ACCOUNT)
        print(json.dumps(as_delivered(entry, publisher.region, account), indent=2))
        return 0
    find_credentials(publisher.aws, publisher.imds)
    url = publisher.client.meta.endpoint_url
    waiting_for = f"EventBridge at {url}; the event may have arrived"
    event_id = publisher.send(entry)
    watchdog.cancel()
    user, bus = one_line(session.pam["PAM_USER"]), entry.get("EventBusName", "default")
    print(
        f"sent: session {session.state} for {user}, event id {event_id},"
        f" event bus {bus} in {publisher.region}"
    )
    return 0


def as_delivered(entry: Entry, region: str, account: str) -> dict[str, object]:
    """Return an entry as EventBridge hands it to a rule, but for the id that it will give it.

    https://docs.aws.amazon.com/eventbridge/latest/ref/overiew-event-structure.html
    """
    return {
        "version": "0",
        "id": NO_ID,
        "detail-type": entry["DetailType"],
        "source": entry["Source"],
        "account": account,
        "time": entry["Time"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": region,
        "resources": entry["Resources"],
        "detail": json.loads(entry["Detail"]),
    }


def give_up(waiting_for: str) -> None:
    """End the process, which hangs in a place that no time-out reaches: a dead name server, say."""
    message = f"no answer within {SMOKE_TEST_SECONDS:.0f} s from {waiting_for}"
    print_error(TattleError(message, os.EX_UNAVAILABLE, "sudo tattle check"))
    os._exit(os.EX_UNAVAILABLE)


def flush(options: argparse.Namespace) -> int:
    """Have delivered what waits in the spool, and say how that went."""
    from tattle.shell import flush

    return flush.main()


def check(options: argparse.Namespace) -> int:
    """Find what keeps events from arriving."""
    begin_anew_if_damaged()
    unpack()
    from tattle.shell import check

    return check.main(options.send, options.json)


def recipe(options: argparse.Namespace) -> int:
    """List the recipes, or print one."""
    from tattle.shell import recipe as recipes

    if not options.name:
        for name, purpose in recipes.recipes():
            print(f"{name:22} {purpose}")
    elif options.name == recipes.IAM_POLICY:
        print(own_iam_policy(), end="")
    else:
        print(recipes.text(options.name), end="")
    return 0


def own_iam_policy() -> str:
    """Return the IAM policy for this instance's region and account, as far as IMDS says."""
    from tattle.shell import recipe as recipes

    try:
        unpack()
        from tattle.aws.credentials import arn, aws_session
        from tattle.event.config import load

        buses = load().buses()
        session, imds = aws_session()
        _, partition, _, region, account, _ = arn(session, imds, imds.identity()).split(":")
    except TattleError as error:
        print(f"tattle: put in your region and account: {one_line(str(error))}", file=sys.stderr)
        return recipes.text(recipes.IAM_POLICY)
    return recipes.iam_policy(partition, region, account, buses)
