"""Shows what tattle does: a login and a logout, as a consumer of the events receives them.

`./build.sh demo` runs it. Run by root with sshd at hand, a throwaway instance is logged in to with
ssh; otherwise the session's variables are given to tattle in a shell, as in its smoke test. The AWS
around it is made of stand-ins. Nothing is left behind but what `./build.sh` keeps in the checkout.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from standins import confinement
from standins.ca import Ca
from standins.imds import Imds
from standins.instance import EVENTBRIDGE_HOST, HOSTNAME, REMOTE_HOST, TATTLE, Instance
from standins.relay import Relay, relay
from standins.server import bind
from support import ARTIFACT, clean_environment, nothing_left_in_the_cache

PATTERN = '{"source": ["com.unbounce.tattle"]}'
GIVE_UP_AFTER_SECONDS = 20  # for an event to arrive

Address = tuple[str, int]


class Consumer:
    """A queue, and a rule that sends it tattle's events: made and read through the real APIs."""

    def __init__(self, events: Any, sqs: Any) -> None:
        self._sqs = sqs
        self._queue = sqs.create_queue(QueueName="logins")["QueueUrl"]
        wanted = {"QueueUrl": self._queue, "AttributeNames": ["QueueArn"]}
        arn = sqs.get_queue_attributes(**wanted)["Attributes"]["QueueArn"]
        events.put_rule(Name="logins", EventPattern=PATTERN)
        refused = events.put_targets(Rule="logins", Targets=[{"Id": "queue", "Arn": arn}])
        assert not refused["FailedEntryCount"], refused

    def receive(self) -> dict[str, Any]:
        """The next event, taken from the queue; TimeoutError if none comes."""
        deadline = time.monotonic() + GIVE_UP_AFTER_SECONDS
        while time.monotonic() < deadline:
            received = self._sqs.receive_message(QueueUrl=self._queue, WaitTimeSeconds=1)
            for message in received.get("Messages", ()):
                handle = message["ReceiptHandle"]
                self._sqs.delete_message(QueueUrl=self._queue, ReceiptHandle=handle)
                event: dict[str, Any] = json.loads(message["Body"])
                return event
        raise TimeoutError(f"no event within {GIVE_UP_AFTER_SECONDS} seconds")


class TlsFront(Relay):
    """Speaks TLS on a socket, as the host it is asked for, and hands what it reads to a server that
    speaks plain HTTP."""

    def __init__(self, listener: socket.socket, ca: Ca, server: Address) -> None:
        super().__init__(listener)
        self._ca = ca
        self._server = server

    def answer(self, client: socket.socket) -> None:
        context = self._ca.context(EVENTBRIDGE_HOST)
        secure = context.wrap_socket(client, server_side=True)
        with secure, socket.create_connection(self._server) as server:
            relay(secure, server)


def main() -> int:
    os.environ.update(AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's, a line for each request
    with ExitStack() as stack:
        say("moto's server starts, to stand in for EventBridge and SQS.")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        stack.callback(server.stop)
        moto = server.get_host_and_port()
        say(f"A consumer makes a queue, and a rule that sends it what matches {PATTERN}.")
        consumer = Consumer(client("events", moto), client("sqs", moto))
        try:
            box = throwaway_instance(stack)
        except NotHere as reason:
            say(f"No real login here, that needs {reason}.")
            say("tattle gets the session's variables in a shell, as in its smoke test.")
            sessions = in_a_shell(stack, moto)
        else:
            say("A throwaway instance runs: this machine's sshd and PAM, tattle, and this line:")
            sessions = over_ssh(stack, moto, box)
        try:
            for _ in sessions:
                say("The consumer receives from the queue:")
                print(json.dumps(consumer.receive(), indent=2), flush=True)
        except (TimeoutError, FileExistsError, subprocess.CalledProcessError) as error:
            say(f"It went wrong: {error}")
            return 1
    say("Both have arrived. In this checkout are left dist, .venv and .venv-test, some 800 MB.")
    say("The next build and the tests use them; you can remove them.")
    return 0


def say(sentence: str) -> None:
    print(f"\n{sentence}", flush=True)


def url(server: Address) -> str:
    host, port = server
    return f"http://{host}:{port}"


def client(service: str, moto: Address) -> Any:
    return boto3.client(
        service,
        region_name="us-east-1",
        endpoint_url=url(moto),
        aws_access_key_id="demo",
        aws_secret_access_key="demo",
    )


class NotHere(Exception):  # noqa: N818
    """What a throwaway instance needs and doesn't have here."""


def throwaway_instance(stack: ExitStack) -> Instance:
    if missing := confinement.missing():
        raise NotHere(missing)
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    tools = [tool for tool in Instance.TOOLS if not shutil.which(tool, path=path)]
    if tools:
        raise NotHere(", ".join(tools))
    try:
        return stack.enter_context(Instance(ARTIFACT))
    except (OSError, RuntimeError) as error:
        raise NotHere(f"namespaces ({error})") from error


def over_ssh(stack: ExitStack, moto: Address, box: Instance) -> Iterator[None]:
    """Log in to the instance, yield, log out, and yield again."""
    print(next(line for line in box.read("/etc/pam.d/sshd").splitlines() if TATTLE in line))
    say(f"In there {EVENTBRIDGE_HOST} is moto behind TLS, 169.254.169.254 a strict IMDSv2 server.")
    listener = bind("127.0.0.2", 443, box.network)
    stack.enter_context(TlsFront(listener, box.ca, moto))
    box.resolve(EVENTBRIDGE_HOST, "127.0.0.2")
    command = box.ssh_command("ssh", "ubuntu@127.0.0.1", "cat", user="ubuntu", source=REMOTE_HOST)
    say(f"Somebody at {REMOTE_HOST} logs in: ssh ubuntu@{HOSTNAME}")
    with box.popen(command, stdin=subprocess.PIPE) as session:
        yield
        say("They log out: exit")
        assert session.stdin
        session.stdin.close()
    if session.returncode:
        raise subprocess.CalledProcessError(session.returncode, "ssh")
    yield


def in_a_shell(stack: ExitStack, moto: Address) -> Iterator[None]:
    """Run tattle for a login, yield, run it for the logout, and yield again."""
    stack.enter_context(nothing_left_in_the_cache())
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tattle-demo-")))
    imds = stack.enter_context(Imds())
    say("A strict IMDSv2 server starts; tattle is told by AWS's variables where that and moto are.")
    environment = {
        **clean_environment(home),
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url,
        "AWS_ENDPOINT_URL_EVENTBRIDGE": url(moto),
    }
    for kind in ("open_session", "close_session"):
        session = {"PAM_TYPE": kind, "PAM_USER": "ubuntu", "PAM_RHOST": REMOTE_HOST}
        typed = " ".join(f'{name}="{value}"' for name, value in session.items())
        say(f"$ {typed} tattle")
        subprocess.run([ARTIFACT], env={**environment, **session}, check=True)
        yield


if __name__ == "__main__":
    sys.exit(main())
