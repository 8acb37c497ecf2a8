"""/etc/tattle.conf: what overrides the defaults, where it goes, and what a slip in it leads to."""

from __future__ import annotations

import re
import socket
import time
from typing import Any

import pytest

from standins.ca import Ca
from standins.eventbridge import Entry
from standins.imds import CREDENTIALS_PATH, TOKEN_PATH
from standins.instance import (
    EVENTBRIDGE_HOST,
    HOSTNAME,
    REMOTE_HOST,
    TATTLE,
    TTY,
    Instance,
)
from standins.relay import Relay, relay
from standins.server import bind

pytestmark = pytest.mark.root

CONF = "/etc/tattle.conf"
LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}
ARN = "arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"

FIELDS = (
    *("username", "remote_host", "session"),
    *("service", "tty", "remote_user", "hostname", "time", "event_id", "auth_method"),
    *("key_fingerprint", "connection", "session_id", "duration", "private_ip"),
    *("availability_zone", "instance_type", "image_id", "tag:Name"),
)


def sent(instance: Instance, conf: str, **hook: Any) -> Entry:
    """The entry that one run of the hook leads to with that configuration."""
    instance.write(CONF, conf)
    before = len(instance.eventbridge.entries())
    assert instance.hook(**hook).returncode == 0
    return instance.eventbridge.wait_for(before + 1)[-1]


class Proxy(Relay):
    """An HTTP proxy inside an instance that tunnels to whatever listens there."""

    address = ("127.0.0.1", 3128)

    def __init__(self, instance: Instance, *, refuses: bool = False) -> None:
        self.connects: list[str] = []
        """host:port of each CONNECT."""
        self.authorizations: list[str] = []
        self._refuses = refuses
        self._namespace = instance.network
        super().__init__(bind(*self.address, self._namespace))

    def answer(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        method, target, _ = head.decode().split("\r\n")[0].split()
        assert method == "CONNECT", head
        self.connects.append(target)
        self.authorizations += re.findall(r"(?im)^proxy-authorization: (.+)\r$", head.decode())
        if self._refuses:
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return
        with bind("127.0.0.1", 0, self._namespace) as server:  # made inside, so it connects inside
            server.connect(("127.0.0.1", int(target.rpartition(":")[2])))
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            relay(client, server)


class TestSettings:
    """That each is read as it is written, or refused: unit/test_configuration.py."""

    def test_what_an_entry_says(self, instance: Instance) -> None:
        bus = "arn:aws:events:eu-west-1:999999999999:event-bus/the/logins"
        lines = ["[tattle]", "Source = org.example", "detail-type = 100% ssh; ☎"]
        lines += [f"event-bus = {bus}", "Fields = session,", "   tty username", ""]
        entry = sent(instance, "\r\n".join(lines))
        assert {name: entry.raw[name] for name in ("Source", "DetailType", "EventBusName")} == {
            "Source": "org.example",
            "DetailType": "100% ssh; ☎",
            "EventBusName": bus,
        }
        assert (
            entry.raw["Detail"] == f'{{"session": "opened", "tty": "{TTY}", "username": "ubuntu"}}'
        )

    @pytest.mark.parametrize(
        ("setting", "host"),
        [
            ("region = eu-west-1", "events.eu-west-1.amazonaws.com"),
            ("endpoint-url = https://vpce-0.events.example", "vpce-0.events.example"),
        ],
    )
    def test_where_it_is_sent_and_not_where_the_instance_is(
        self, setting: str, host: str, instance: Instance
    ) -> None:
        instance.write("/etc/hosts", f"127.0.0.1 localhost {host}\n")
        assert sent(instance, f"[tattle]\n{setting}\n").raw["Resources"] == [ARN]
        (call,) = instance.eventbridge.calls()
        assert (call.host, call.server_name) == (host, host)

    def test_a_ca_bundle_says_whom_to_trust_and_root_files_no_longer_do(
        self, instance: Instance
    ) -> None:
        instance.write("/etc/ssl/private-ca.pem", instance.ca.pem)
        instance.write("/root/.aws/config", "[default]\nca_bundle = /root/other-ca.pem\n", 0o600)
        instance.write("/root/other-ca.pem", Ca("Another").pem)
        sent(instance, "[tattle]\nca-bundle = /etc/ssl/private-ca.pem\n")
        instance.write(CONF, "[tattle]\nca-bundle = /root/other-ca.pem\n")
        done = instance.run([TATTLE], env=LOGIN)
        assert done.returncode == 69
        assert "certificate" in done.stderr.lower()

    def test_a_deliverer_that_stays_obeys_what_is_written_meanwhile(
        self, instance: Instance
    ) -> None:
        sent(instance, "[tattle]\nsource = org.example.one\n")
        (deliverer,) = instance.deliverers()
        assert sent(instance, "[tattle]\nsource = org.example.two\n").raw["Source"].endswith("two")
        assert [process.pid for process in instance.deliverers()] == [deliverer.pid]


class TestProxy:
    def test_eventbridge_is_reached_through_it_and_imds_is_not(self, instance: Instance) -> None:
        with Proxy(instance) as proxy:
            sent(instance, "", before=[("HTTPS_PROXY", "http://127.0.0.1:3128")])
            assert proxy.connects == []  # a user's variable is no setting
            instance.write("/etc/hosts", "127.0.0.1 localhost\n")  # the proxy knows where that is
            sent(instance, "[tattle]\nproxy = http://127.0.0.1:3128\n")
        assert proxy.connects == [f"{EVENTBRIDGE_HOST}:443"]
        call = instance.eventbridge.calls()[-1]
        assert (call.host, call.server_name) == (EVENTBRIDGE_HOST, EVENTBRIDGE_HOST)
        assert TOKEN_PATH in {request.path for request in instance.imds.requests()}

    def test_its_password_goes_to_the_proxy_and_never_to_the_log(self, instance: Instance) -> None:
        instance.write(CONF, "[tattle]\nproxy = http://fleet:s3cret@127.0.0.1:3128\n")
        with Proxy(instance, refuses=True) as proxy:
            instance.hook()
            line = instance.syslog.wait_for("events wait in the spool")
            done = instance.run([TATTLE], env=LOGIN)
            checked = instance.run([TATTLE, "check"])
        assert set(proxy.authorizations) == {"Basic ZmxlZXQ6czNjcmV0"}
        assert "proxy" in line.message.lower()
        assert done.returncode == 69
        for text in (line.message, done.stderr, checked.stdout, checked.stderr):
            assert "s3cret" not in text
            assert "ZmxlZXQ6" not in text


class TestHostsThatAreNotEc2:
    CONF = "[tattle]\nresource = rack 7, unit 3\nregion = us-east-1\n"

    def test_imds_is_asked_for_nothing_but_credentials(self, instance: Instance) -> None:
        fields = "fields = username private_ip availability_zone instance_type image_id tag:Name"
        instance.imds.set(tags={"Name": "web"})
        entry = sent(instance, f"{self.CONF}{fields}\n")
        assert entry.raw["Resources"] == ["rack 7, unit 3"]
        assert entry.raw["Detail"] == (
            '{"username": "ubuntu", "private_ip": null, "availability_zone": null, '
            '"instance_type": null, "image_id": null}'
        )
        asked = [(request.method, request.path) for request in instance.imds.requests()]
        assert asked == [
            ("PUT", TOKEN_PATH),
            ("GET", CREDENTIALS_PATH),
            ("GET", f"{CREDENTIALS_PATH}tattle"),
        ]

    def test_imds_is_asked_for_nothing_where_roots_files_hold_credentials(
        self, instance: Instance
    ) -> None:
        (keys,) = instance.eventbridge.settings.credentials
        instance.write(
            "/root/.aws/credentials",
            f"[default]\naws_access_key_id = {keys.access_key_id}\n"
            f"aws_secret_access_key = {keys.secret_access_key}\n"
            f"aws_session_token = {keys.session_token}\n",
            0o600,
        )
        config = "[default]\nca_bundle = /root/test-ca.pem\nregion = us-east-1\n"
        instance.write("/root/.aws/config", config, 0o600)
        entry = sent(instance, "[tattle]\nresource = rack\n")  # the region stands there, too
        assert entry.raw["Resources"] == ["rack"]
        assert instance.run([TATTLE], env=LOGIN).returncode == 0
        assert instance.imds.connection_count() == 0


class TestFields:
    def test_every_field_of_a_real_session_has_its_value_and_its_place(
        self, instance: Instance
    ) -> None:
        instance.imds.set(tags={"Name": "web-1", "secret": "no"})
        instance.configure_pam(user_readenv=False)
        instance.write(CONF, f"[tattle]\nfields = {' '.join(FIELDS)}\n")
        time.sleep(0.05)  # the session's process starts after the PAM file was last changed
        assert instance.ssh("ubuntu", "true").returncode == 0
        public = "/home/ubuntu/.ssh/authorized_keys"
        key = instance.run(["ssh-keygen", "-lf", public], check=True).stdout.split()[1]
        entries = instance.eventbridge.wait_for(2)
        opened, closed = (entry.detail for entry in entries)
        assert tuple(opened) == tuple(name for name in FIELDS if name != "duration")
        assert tuple(closed) == FIELDS
        for entry, detail, state in zip(entries, (opened, closed), ("opened", "closed")):
            whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(entry.raw["Time"]))
            assert re.fullmatch(rf"{whole}\.\d{{3}}Z", detail.pop("time"))
            assert re.fullmatch("[0-9a-f]{32}", detail.pop("event_id"))
            assert isinstance(detail["connection"].pop("remote_port"), int)
            assert detail | {"session_id": None, "duration": None} == {
                "username": "ubuntu",
                "remote_host": REMOTE_HOST,
                "session": state,
                "service": "sshd",
                "tty": TTY,
                "remote_user": None,
                "hostname": HOSTNAME,
                "auth_method": "publickey",
                "key_fingerprint": key,
                "connection": {
                    "remote_host": REMOTE_HOST,
                    "local_host": "127.0.0.1",
                    "local_port": 22,
                },
                "session_id": None,
                "duration": None,
                "private_ip": "10.0.0.5",
                "availability_zone": "us-east-1b",
                "instance_type": "t4g.micro",
                "image_id": "ami-0abcdef1234567890",
                "tag:Name": "web-1",
            }
        assert re.fullmatch("[0-9a-f]{32}", opened["session_id"])
        assert opened["session_id"] == closed["session_id"]
        assert closed["duration"] in range(30)

    def test_a_tag_that_is_not_there_is_left_out_and_asked_for_once(
        self, instance: Instance
    ) -> None:
        conf = "[tattle]\nfields = username tag:Name tag:aws:autoscaling:groupName\n"
        instance.imds.set(tags={"aws:autoscaling:groupName": "bastions"})
        for _ in range(2):
            assert sent(instance, conf).raw["Detail"] == (
                '{"username": "ubuntu", "tag:aws:autoscaling:groupName": "bastions"}'
            )
        asked = [request.path for request in instance.imds.requests()]
        assert asked.count("/latest/meta-data/tags/instance/Name") == 1
        instance.kill_deliverers()
        instance.imds.set(tags=None)  # tags are not enabled
        assert sent(instance, conf).raw["Detail"] == '{"username": "ubuntu"}'


class TestUnderPam:
    """A slip in the file keeps events back, and loses none."""

    BAD = "[tattle]\nsauce = org.example\n"
    GOOD = "[tattle]\nsource = org.example\n"

    def test_events_are_kept_and_a_flush_sends_them_once_the_file_is_fixed(
        self, instance: Instance
    ) -> None:
        instance.write(CONF, self.BAD)
        assert instance.ssh("ubuntu", "true").returncode == 0
        line = instance.syslog.wait_for(f"{CONF}, line 2")
        assert "sauce" in line.message
        instance.kill_deliverers()
        flushed = instance.run([TATTLE, "flush"])
        assert flushed.returncode == 75
        assert re.fullmatch(f"tattle: {CONF}, line 2: .*sauce.*\n", flushed.stderr)
        assert len(instance.spool()) == 2
        assert instance.eventbridge.connection_count() == 0
        instance.write(CONF, self.GOOD)
        flushed = instance.run([TATTLE, "flush"])
        assert (flushed.returncode, flushed.stdout) == (0, "2 delivered, 0 remain\n")
        entries = instance.eventbridge.entries()
        assert [entry.detail["session"] for entry in entries] == ["opened", "closed"]
        assert {entry.raw["Source"] for entry in entries} == {"org.example"}
        assert instance.spool() == []

    def test_the_deliverer_that_waits_finds_the_file_fixed_by_itself(
        self, instance: Instance
    ) -> None:
        instance.write(CONF, self.BAD)
        instance.hook()
        instance.syslog.wait_for(f"{CONF}, line 2")
        (deliverer,) = instance.deliverers()
        instance.write(CONF, self.GOOD)
        (entry,) = instance.eventbridge.wait_for(1)
        assert entry.raw["Source"] == "org.example"
        assert [process.pid for process in instance.deliverers()] == [deliverer.pid]
        instance.syslog.wait_for("delivering again")
        assert len([line for line in instance.log() if CONF in line.message]) == 1
