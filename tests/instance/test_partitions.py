"""Wherever the instance stands: the partition in its ARN, and the host name that is dialled."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from standins.imds import identity_document
from standins.instance import TATTLE, Instance
from standins.server import bind
from support import need

pytestmark = pytest.mark.root

LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}
AWS_CONFIG = "[default]\nca_bundle = /root/test-ca.pem\n"


class Partition(NamedTuple):
    """As AWS has it. Without a domain for dual stack: botocore knows none there."""

    name: str
    region: str
    domain: str
    dual_stack_domain: str | None
    fips: str = "events-fips"


PARTITIONS = [
    Partition("aws", "eu-central-1", "amazonaws.com", "api.aws"),
    Partition("aws-cn", "cn-north-1", "amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    Partition("aws-eusc", "eusc-de-east-1", "amazonaws.eu", "api.amazonwebservices.eu"),
    # There the ordinary endpoint is validated: https://aws.amazon.com/compliance/fips/
    Partition("aws-us-gov", "us-gov-west-1", "amazonaws.com", "api.aws", fips="events"),
    Partition("aws-iso", "us-iso-east-1", "c2s.ic.gov", "api.aws.ic.gov"),
    Partition("aws-iso-b", "us-isob-east-1", "sc2s.sgov.gov", "api.aws.scloud"),
    Partition("aws-iso-e", "eu-isoe-west-1", "cloud.adc-e.uk", None),
    Partition("aws-iso-f", "us-isof-south-1", "csp.hci.ic.gov", None),
]


def arn(partition: str, region: str) -> str:
    return f"arn:{partition}:ec2:{region}:012345678901:instance/i-abc123abc123"


def dialled(instance: Instance, host: str, *settings: str) -> list[str]:
    """Run the smoke test where that host name alone leads to EventBridge, check that it was dialled
    (in the handshake and in the request), and return the event's resources."""
    instance.write("/etc/hosts", "127.0.0.1 localhost\n")
    instance.resolve(host)
    if settings:
        instance.write("/etc/tattle.conf", "\n".join(["[tattle]", *settings]))
    instance.eventbridge.clear()
    done = instance.run([TATTLE], env=LOGIN)
    assert not done.stderr
    (call,) = instance.eventbridge.calls()
    assert (call.host, call.server_name, call.outcome) == (host, host, "accepted")
    (entry,) = instance.eventbridge.entries()
    resources: list[str] = entry.raw["Resources"]
    return resources


def asked(instance: Instance) -> set[str]:
    """The paths below services/ that IMDS was asked for."""
    paths = [request.path.partition("/services/")[2] for request in instance.imds.requests()]
    return {path for path in paths if path}


def test_every_partition_that_the_artifact_knows_is_in_this_files_table(artifact: Path) -> None:
    with zipfile.ZipFile(artifact) as archive:
        known = json.loads(archive.read("site-packages/botocore/data/partitions.json"))
    assert {one["id"] for one in known["partitions"]} == {one.name for one in PARTITIONS}


@pytest.mark.parametrize("partition", PARTITIONS, ids=[one.name for one in PARTITIONS])
def test_a_partition_has_its_arn_and_its_host_names(
    partition: Partition, instance: Instance
) -> None:
    name, region, domain, dual_stack, fips = partition
    instance.imds.set(document=identity_document(region=region), partition=None, domain=None)
    hosts = [
        (f"events.{region}.{domain}", ["use-fips = no"]),
        (f"{fips}.{region}.{domain}", ["use-fips = true"]),
    ]
    if dual_stack:
        hosts += [
            (f"events.{region}.{dual_stack}", ["use-dualstack = true"]),
            (f"{fips}.{region}.{dual_stack}", ["use-fips = true", "use-dualstack = true"]),
        ]
    for host, settings in hosts:
        assert dialled(instance, host, *settings) == [arn(name, region)]
    assert asked(instance) == set()


@pytest.mark.parametrize("region", ["eu-isoe-west-1", "us-isof-south-1"])
def test_dual_stack_where_there_is_none_is_a_fault_of_the_configuration(
    region: str, instance: Instance
) -> None:
    instance.imds.set(document=identity_document(region=region))
    instance.write("/etc/tattle.conf", "[tattle]\nuse-dualstack = true\n")
    done = instance.run([TATTLE], env=LOGIN)
    assert (done.returncode, done.stdout) == (78, "")
    assert re.fullmatch("tattle: .*dualstack.*\n", done.stderr)


def test_a_region_that_is_new_in_a_known_partition_needs_nothing_of_imds(
    instance: Instance,
) -> None:
    instance.imds.set(
        document=identity_document(region="us-gov-south-7"), partition=None, domain=None
    )
    host = "events.us-gov-south-7.amazonaws.com"
    assert dialled(instance, host) == [arn("aws-us-gov", "us-gov-south-7")]


class TestARegionThatBotocoreHasNotHeardOf:
    @pytest.fixture(autouse=True)
    def _on_the_moon(self, instance: Instance) -> None:
        instance.imds.set(
            document=identity_document(region="moon-base-1"),
            partition="aws-moon",
            domain="amazonaws.moon",
        )

    def test_imds_tells_its_partition_and_its_domain(self, instance: Instance) -> None:
        resources = dialled(instance, "events.moon-base-1.amazonaws.moon")
        assert resources == [arn("aws-moon", "moon-base-1")]
        assert asked(instance) == {"partition", "domain"}

    def test_fips_is_dialled_there_too(self, instance: Instance) -> None:
        host = "events-fips.moon-base-1.amazonaws.moon"
        assert dialled(instance, host, "use-fips = true") == [arn("aws-moon", "moon-base-1")]

    def test_dual_stack_there_is_never_taken_for_the_ordinary_name(
        self, instance: Instance
    ) -> None:
        instance.resolve("events.moon-base-1.amazonaws.moon")
        instance.write("/etc/tattle.conf", "[tattle]\nuse-dualstack = true\n")
        done = instance.run([TATTLE], env=LOGIN)
        assert (done.returncode, done.stdout) == (78, "")
        assert re.fullmatch("tattle: .*endpoint-url.*\n", done.stderr)
        assert instance.eventbridge.calls() == []

    def test_where_imds_does_not_tell_it_is_taken_for_the_commercial_partition(
        self, instance: Instance
    ) -> None:
        instance.imds.set(partition=None, domain=None)
        resources = dialled(instance, "events.moon-base-1.amazonaws.com")
        assert resources == [arn("aws", "moon-base-1")]

    def test_a_region_in_the_configuration_says_where_to_send_and_not_where_it_stands(
        self, instance: Instance
    ) -> None:
        resources = dialled(instance, "events.eu-west-1.amazonaws.com", "region = eu-west-1")
        assert resources == [arn("aws-moon", "moon-base-1")]


class TestRootsAwsFiles:
    """botocore's own names for FIPS and dual stack apply where the configuration says nothing."""

    @pytest.mark.parametrize(
        ("setting", "host"),
        [
            ("use_fips_endpoint = true", "events-fips.us-east-1.amazonaws.com"),
            ("use_dualstack_endpoint = true", "events.us-east-1.api.aws"),
        ],
    )
    def test_they_are_obeyed(self, setting: str, host: str, instance: Instance) -> None:
        instance.write("/root/.aws/config", f"{AWS_CONFIG}{setting}\n", 0o600)
        assert dialled(instance, host) == [arn("aws", "us-east-1")]

    def test_the_configuration_has_the_last_word(self, instance: Instance) -> None:
        instance.write("/root/.aws/config", f"{AWS_CONFIG}use_fips_endpoint = true\n", 0o600)
        assert dialled(instance, "events.us-east-1.amazonaws.com", "use-fips = false")


class TestIpv6:
    @pytest.fixture(autouse=True)
    def _ipv6(self, instance: Instance) -> None:
        there = instance.run(["ip", "address", "show", "dev", "lo"]).stdout
        need("fd00:ec2::254" in there, "needs IPv6")

    def test_imds_is_reached_where_it_has_an_ipv6_address_only(self, instance: Instance) -> None:
        mode = "ec2_metadata_service_endpoint_mode = ipv6\n"
        instance.write("/root/.aws/config", AWS_CONFIG + mode, 0o600)
        instance.run(["ip", "address", "delete", "169.254.169.254/32", "dev", "lo"], check=True)
        assert dialled(instance, "events.us-east-1.amazonaws.com") == [arn("aws", "us-east-1")]
        hosts = {request.headers["host"] for request in instance.imds.requests()}
        assert hosts == {"[fd00:ec2::254]"}

    def test_an_event_accepted_at_a_login_goes_out_over_it_too(self, instance: Instance) -> None:
        mode = "ec2_metadata_service_endpoint_mode = ipv6\n"
        instance.write("/root/.aws/config", AWS_CONFIG + mode, 0o600)
        instance.run(["ip", "address", "delete", "169.254.169.254/32", "dev", "lo"], check=True)
        assert instance.ssh("ubuntu", "true").returncode == 0
        assert len(instance.eventbridge.wait_for(2)) == 2

    def test_eventbridge_is_reached_at_its_dual_stack_names_ipv6_address(
        self, instance: Instance
    ) -> None:
        host = "events.us-east-1.api.aws"
        instance.write("/etc/hosts", f"127.0.0.1 localhost\n2001:db8::1 {host}\n")
        instance.write("/etc/tattle.conf", "[tattle]\nuse-dualstack = yes\n")
        listener = bind("2001:db8::1", 443, f"/proc/{instance.pid}/ns/net")
        with type(instance.eventbridge)(listener, ca=instance.ca) as eventbridge:
            done = instance.run([TATTLE], env=LOGIN)
            assert not done.stderr
            (call,) = eventbridge.calls()
        assert (call.host, call.server_name) == (host, host)
