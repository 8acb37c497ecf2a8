"""/etc/tattle.conf: what a site wants otherwise, where it goes, and what a slip in it leads to."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from standins.ca import Ca
from standins.eventbridge import Entry
from standins.imds import CREDENTIALS_PATH, TOKEN_PATH
from standins.instance import (
    EVENTBRIDGE_HOST,
    HOSTNAME,
    REMOTE_HOST,
    SPOOL,
    TATTLE,
    TTY,
    Instance,
    Text,
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


def told(instance: Instance, conf: str, **hook: Any) -> Entry:
    """The entry that one run of the hook leads to with that configuration."""
    instance.write(CONF, conf)
    before = len(instance.eventbridge.entries())
    assert instance.hook(**hook).returncode == 0
    return instance.eventbridge.wait_for(before + 1)[-1]


def imds_paths(instance: Instance) -> set[str]:
    return {request.path for request in instance.imds.requests()}


class Proxy(Relay):
    """An HTTP proxy inside an instance that tunnels to whatever listens there."""

    address = ("127.0.0.1", 3128)

    def __init__(self, instance: Instance, *, refuses: bool = False) -> None:
        self.connects: list[str] = []
        """host:port of each CONNECT."""
        self.authorizations: list[str] = []
        self._refuses = refuses
        self._namespace = f"/proc/{instance.pid}/ns/net"
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


class TestWithoutIt:
    def test_a_login_and_a_logout_are_told_byte_for_byte_as_the_readme_shows(
        self, instance: Instance
    ) -> None:
        assert not instance.path(CONF).exists()
        before = int(time.time())
        assert instance.ssh("ubuntu", "true").returncode == 0
        entries = instance.eventbridge.wait_for(2)
        for entry, state in zip(entries, ("opened", "closed")):
            assert entry.raw["Detail"] == (
                f'{{"username": "ubuntu", "remote_host": "1.2.3.4", "session": "{state}"}}'
            )
            assert before <= entry.raw["Time"] <= time.time()
            assert {name: value for name, value in entry.raw.items() if name != "Time"} == {
                "Source": "com.unbounce.tattle",
                "DetailType": "SSH connection event detected",
                "Resources": [ARN],
                "Detail": entry.raw["Detail"],
            }

    @pytest.mark.parametrize("conf", ["# nothing yet\n", "\n[tattle]\n[service sshd]\n"])
    def test_a_file_that_sets_nothing_changes_nothing(self, conf: str, instance: Instance) -> None:
        plain = instance.hook(), instance.eventbridge.wait_for(1)[0].raw
        raw = told(instance, conf).raw
        assert {**raw, "Time": 0} == {**plain[1], "Time": 0}


class TestSettings:
    def test_the_source_and_the_detail_type(self, instance: Instance) -> None:
        raw = told(instance, "[tattle]\nsource = org.example\ndetail-type = 100% ssh; ☎\n").raw
        assert (raw["Source"], raw["DetailType"]) == ("org.example", "100% ssh; ☎")
        assert json.loads(raw["Detail"])["username"] == "ubuntu"

    @pytest.mark.parametrize(
        "bus", ["logins", "arn:aws:events:eu-west-1:999999999999:event-bus/the/logins"]
    )
    def test_the_event_bus_by_name_or_arn(self, bus: str, instance: Instance) -> None:
        assert told(instance, f"[tattle]\nevent-bus = {bus}\n").raw["EventBusName"] == bus

    def test_a_region_says_where_to_send_and_not_where_the_instance_is(
        self, instance: Instance
    ) -> None:
        host = "events.eu-west-1.amazonaws.com"
        instance.write("/etc/hosts", f"127.0.0.1 localhost {host}\n")
        assert told(instance, "[tattle]\nregion = eu-west-1\n").raw["Resources"] == [ARN]
        assert {call.host for call in instance.eventbridge.calls()} == {host}

    def test_an_endpoint_url_is_dialled_and_signed_for_the_instances_region(
        self, instance: Instance
    ) -> None:
        host = "vpce-0123-abcd.events.us-east-1.vpce.amazonaws.com"
        instance.write("/etc/hosts", f"127.0.0.1 localhost {host}\n")
        told(instance, f"[tattle]\nendpoint-url = https://{host}\n")
        (call,) = instance.eventbridge.calls()
        assert (call.host, call.server_name) == (host, host)

    def test_fips_and_dual_stack(self, instance: Instance) -> None:
        host = "events-fips.us-east-1.api.aws"
        instance.write("/etc/hosts", f"127.0.0.1 localhost {host}\n")
        told(instance, "[tattle]\nuse-fips = yes\nuse-dualstack = 1\n")
        assert [call.host for call in instance.eventbridge.calls()] == [host]

    def test_a_ca_bundle_says_whom_to_trust_and_root_files_no_longer_do(
        self, instance: Instance
    ) -> None:
        instance.write("/etc/ssl/private-ca.pem", instance.ca.pem)
        instance.write("/root/.aws/config", "[default]\nca_bundle = /root/other-ca.pem\n", 0o600)
        instance.write("/root/other-ca.pem", Ca("Another").pem)
        told(instance, "[tattle]\nca-bundle = /etc/ssl/private-ca.pem\n")
        instance.write(CONF, "[tattle]\nca-bundle = /root/other-ca.pem\n")
        done = instance.run([TATTLE], env=LOGIN)
        assert done.returncode == 69
        assert "certificate" in done.stderr.lower()

    def test_names_may_be_in_upper_case_and_values_go_on_in_the_next_line(
        self, instance: Instance
    ) -> None:
        entry = told(instance, "[tattle]\r\nFields = session,\r\n   tty username\r\n")
        assert (
            entry.raw["Detail"] == f'{{"session": "opened", "tty": "{TTY}", "username": "ubuntu"}}'
        )

    def test_a_deliverer_that_stays_obeys_what_is_written_meanwhile(
        self, instance: Instance
    ) -> None:
        told(instance, "[tattle]\nsource = org.example.one\n")
        (deliverer,) = instance.deliverers()
        assert told(instance, "[tattle]\nsource = org.example.two\n").raw["Source"].endswith("two")
        assert [process.pid for process in instance.deliverers()] == [deliverer.pid]


class TestProxy:
    def test_eventbridge_is_reached_through_it_and_imds_is_not(self, instance: Instance) -> None:
        instance.write("/etc/hosts", "127.0.0.1 localhost\n")  # the proxy knows where that is
        with Proxy(instance) as proxy:
            told(instance, "[tattle]\nproxy = http://127.0.0.1:3128\n")
        assert proxy.connects == [f"{EVENTBRIDGE_HOST}:443"]
        (call,) = instance.eventbridge.calls()
        assert (call.host, call.server_name) == (EVENTBRIDGE_HOST, EVENTBRIDGE_HOST)
        assert TOKEN_PATH in imds_paths(instance)

    def test_without_the_setting_nothing_goes_through_it(self, instance: Instance) -> None:
        with Proxy(instance) as proxy:
            told(instance, "", before=[("HTTPS_PROXY", "http://127.0.0.1:3128")])
        assert proxy.connects == []

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
        entry = told(instance, f"{self.CONF}{fields}\n")
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
        told(instance, self.CONF)
        assert instance.run([TATTLE], env=LOGIN).returncode == 0
        assert instance.imds.connection_count() == 0

    def test_the_region_may_stand_in_roots_files(self, instance: Instance) -> None:
        config = "[default]\nca_bundle = /root/test-ca.pem\nregion = us-east-1\n"
        instance.write("/root/.aws/config", config, 0o600)
        assert told(instance, "[tattle]\nresource = rack\n").raw["Resources"] == ["rack"]

    def test_without_any_region_one_line_says_what_is_missing(self, instance: Instance) -> None:
        instance.write(CONF, "[tattle]\nresource = rack\n")
        done = instance.run([TATTLE], env=LOGIN)
        assert (done.returncode, done.stdout) == (78, "")
        assert re.fullmatch("tattle: .*`region`.*\n", done.stderr)


class TestFields:
    def test_every_field_of_a_real_session_has_its_value_and_its_place(
        self, instance: Instance
    ) -> None:
        instance.imds.set(tags={"Name": "web-1", "secret": "no"})
        instance.configure_pam(user_readenv=False)
        instance.write(CONF, f"[tattle]\nfields = {' '.join(FIELDS)}\n")
        time.sleep(0.05)  # the session's process starts after the PAM file was last changed
        before = time.time()
        assert instance.ssh("ubuntu", "echo $SSH_CONNECTION; sleep 1.2").returncode == 0
        public = "/home/ubuntu/.ssh/authorized_keys"
        key = instance.run(["ssh-keygen", "-lf", public], check=True).stdout.split()[1]
        opened, closed = (entry.detail for entry in instance.eventbridge.wait_for(2))
        assert tuple(opened) == tuple(name for name in FIELDS if name != "duration")
        assert tuple(closed) == FIELDS
        for detail, state in ((opened, "opened"), (closed, "closed")):
            moment = detail.pop("time")
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)
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
        assert closed["duration"] == 1
        assert before <= time.time()

    def test_the_time_is_that_of_the_hook_and_the_entrys(self, instance: Instance) -> None:
        entry = told(instance, "[tattle]\nfields = time\n")
        seconds, milliseconds = entry.detail["time"].rstrip("Z").split(".")
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(entry.raw["Time"]))
        assert (seconds, len(milliseconds)) == (whole, 3)

    @pytest.mark.parametrize("fields", [FIELDS[::-1], ("tag:Name", "session")])
    def test_they_come_in_the_order_asked_for(
        self, fields: tuple[str, ...], instance: Instance
    ) -> None:
        instance.imds.set(tags={"Name": "web-1"})
        entry = told(instance, f"[tattle]\nfields = {', '.join(fields)}\n")
        assert list(entry.detail) == [name for name in fields if name != "duration"]

    def test_items_that_pam_sets(self, instance: Instance) -> None:
        fields = "username remote_host service tty remote_user"
        conf = f"[tattle]\nfields = {fields}\n"
        entry = told(
            instance, conf, service="su", tty="pts/3", ruser="alice", rhost=None, user="root"
        )
        assert entry.raw["Detail"] == (
            '{"username": "root", "remote_host": "", "service": "su", "tty": "pts/3", '
            '"remote_user": "alice"}'
        )

    def test_a_tag_that_is_not_there_is_left_out_and_asked_for_once(
        self, instance: Instance
    ) -> None:
        conf = "[tattle]\nfields = username tag:Name tag:aws:autoscaling:groupName\n"
        instance.imds.set(tags={"aws:autoscaling:groupName": "bastions"})
        for _ in range(2):
            assert told(instance, conf).raw["Detail"] == (
                '{"username": "ubuntu", "tag:aws:autoscaling:groupName": "bastions"}'
            )
        asked = [request.path for request in instance.imds.requests()]
        assert asked.count("/latest/meta-data/tags/instance/Name") == 1

    def test_tags_that_are_not_enabled_are_left_out(self, instance: Instance) -> None:
        instance.imds.set(tags=None)
        entry = told(instance, "[tattle]\nfields = username tag:Name\n")
        assert entry.raw["Detail"] == '{"username": "ubuntu"}'


LONG = "x" * 129
FAULTS: dict[str, tuple[Text, int, str]] = {
    "an unknown key": ("[tattle]\nsource = a\nsauce = b\n", 3, "sauce"),
    "a key in capitals": ("\n\n[tattle]\nSAUCE = b\n", 4, "sauce"),
    "a key with a colon": ("[tattle]\nsauce: b\n", 2, "sauce"),
    "a key of another section's": (
        "[tattle]\nregion = us-east-1\n[service sudo]\nsource = a\nregion = us-east-1\n",
        5,
        "region",
    ),
    "an unknown section": ("[tattle]\n\n[tattel]\nsource = a\n", 3, "tattel"),
    "a service without a name": ("[service ]\nsource = a\n", 1, "service"),
    "defaults, which there are none of": ("[DEFAULT]\nsource = a\n", 1, "DEFAULT"),
    "a source of AWS's": ("[tattle]\nsource = aws.ec2\n", 2, "aws."),
    "a source of AWS's, for one service": ("[service su]\nsource = aws.ec2\n", 2, "aws."),
    "no value": ("[tattle]\nsource =\n", 2, "source"),
    "a long detail-type": (f"[tattle]\ndetail-type = {LONG}\n", 2, "128"),
    "a bus that can't be": ("[tattle]\nevent-bus = my bus\n", 2, "event-bus"),
    "a key that is indented by mistake": ("[tattle]\nsource = a\n  fields = tty\n", 2, "source"),
    "a field that there is not": ("[tattle]\nfields =\n  username\n  usernme\n", 2, "usernme"),
    "no fields": ("[tattle]\nfields =\n", 2, "fields"),
    "a region that can't be": ("[tattle]\nregion = US East\n", 2, "us-east-1"),
    "an endpoint that is no URL": ("[tattle]\nendpoint-url = vpce.example\n", 2, "https://"),
    "a proxy that is no URL": ("[tattle]\nproxy = 10.0.0.1:3128\n", 2, "http"),
    "a relative path": ("[tattle]\nca-bundle = ca.pem\n", 2, "ca-bundle"),
    "a file that is not there": ("[tattle]\nca-bundle = /etc/ca.pem\n", 2, "/etc/ca.pem"),
    "neither yes nor no": ("[tattle]\nuse-fips = maybe\n", 2, "true or false"),
    "no section": ("source = a\n", 1, "[tattle]"),
    "a line that says nothing": ("[tattle]\nsource = a\nwhatever\n", 3, "whatever"),
    "a key twice": ("[tattle]\nsource = a\nsource = b\n", 3, "source"),
    "a section twice": ("[tattle]\nsource = a\n[tattle]\nregion = us-east-1\n", 3, "tattle"),
    "bytes that are not UTF-8": (b"[tattle]\nsource = a\ndetail-type = \xff\n", 3, "UTF-8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_with_the_files_name_and_the_lines_number(
    fault: str, instance: Instance
) -> None:
    conf, number, word = FAULTS[fault]
    instance.write(CONF, conf)
    done = instance.run([TATTLE], env=LOGIN)
    assert (done.returncode, done.stdout) == (78, "")
    assert re.fullmatch(f"tattle: {CONF}, line {number}: .*{re.escape(word)}.*\n", done.stderr)
    assert instance.eventbridge.connection_count() == 0


class TestAFileThatSomebodyElseCouldWrite:
    """It could send events elsewhere, so it is not read."""

    def refused(self, instance: Instance, name: str = CONF) -> None:
        done = instance.run([TATTLE], env=LOGIN)
        assert (done.returncode, done.stdout) == (78, "")
        assert re.fullmatch(f"tattle: .*{re.escape(name)}.*\n", done.stderr)
        assert instance.eventbridge.connection_count() == 0
        assert instance.hook().returncode == 0
        told = instance.syslog.wait_for("events wait in the spool").message
        assert name in told
        assert len(instance.spool()) == 1

    @pytest.mark.parametrize("mode", [0o666, 0o664, 0o602, 0o1666])
    def test_by_its_mode(self, mode: int, instance: Instance) -> None:
        instance.write(CONF, "[tattle]\nsource = org.example\n", mode)
        self.refused(instance)

    def test_by_its_owner(self, instance: Instance) -> None:
        instance.write(CONF, "[tattle]\nsource = org.example\n", owner="alice")
        self.refused(instance)

    def test_through_a_link(self, instance: Instance) -> None:
        instance.write("/home/alice/conf", "[tattle]\nsource = org.example\n")
        instance.write(CONF, "")
        link(instance, "/home/alice/conf")
        self.refused(instance, "/home/alice")

    def test_a_link_to_a_file_that_is_roots_alone_is_read(self, instance: Instance) -> None:
        instance.write(CONF, "")
        instance.write("/etc/tattle/fleet.conf", "[tattle]\nsource = org.example\n")
        link(instance, "tattle/fleet.conf")
        instance.hook()
        assert instance.eventbridge.wait_for(1)[0].raw["Source"] == "org.example"

    def test_a_ca_bundle(self, instance: Instance) -> None:
        instance.write("/etc/ca.pem", instance.ca.pem, owner="alice")
        instance.write(CONF, "[tattle]\nca-bundle = /etc/ca.pem\n")
        self.refused(instance, f"{CONF}, line 2: [tattle] ca-bundle: /etc/ca.pem")


def link(instance: Instance, target: str) -> None:
    """Have the configuration be a symbolic link."""
    path = instance.path("/etc") / "tattle.conf"
    path.unlink()
    os.symlink(target, path)


class TestUnderPam:
    """A slip in the file keeps events back, and loses none."""

    BAD = "[tattle]\nsauce = org.example\n"
    GOOD = "[tattle]\nsource = org.example\n"

    def test_events_are_kept_and_a_flush_sends_them_once_the_file_is_mended(
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

    def test_the_deliverer_that_waits_finds_the_file_mended_by_itself(
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

    def test_nothing_is_set_aside(self, instance: Instance) -> None:
        for conf in ("source = x\n", "[tattle]\nevent-bus = my bus\n", b"\xff\n"):
            instance.write(CONF, conf)
            instance.hook()
            instance.syslog.wait_for("events wait in the spool")
            instance.kill_deliverers()
            instance.syslog.clear()
        assert len(instance.spool()) == 3
        assert not Path(instance.path(SPOOL), "rejected").exists()
