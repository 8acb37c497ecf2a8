"""Wherever the instance stands: the partition in its ARN, and the host name that is dialled.

Both are found out in the tests' own process, with botocore's data as the artifact has it; that
they are dialled is shown once for each kind of name.
"""

from __future__ import annotations

import json
import urllib.parse
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from standins.imds import Imds, identity_document
from standins.instance import TATTLE, Instance
from standins.server import bind
from support import need
from tattle.aws.eventbridge import Publisher
from tattle.errors import TattleError
from tattle.event.config import Config

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


@pytest.fixture(scope="session")
def aws_data(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact's."""
    folder = tmp_path_factory.mktemp("data")
    with zipfile.ZipFile(artifact) as archive:
        archive.extractall(folder, [one for one in archive.namelist() if "/botocore/data/" in one])
    return folder / "site-packages/botocore/data"


@pytest.fixture
def somewhere(on_ec2: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_EVENTBRIDGE")


class NotSent(Exception):  # noqa: N818
    """The request was to be sent to that URL."""


def found(**settings: Any) -> tuple[str, str]:
    """The host name that a request would go to, and the instance's ARN, with those settings."""
    publisher = Publisher(Config(**settings), 1)

    def stop(request: Any, **_: object) -> None:
        raise NotSent(request.url)

    publisher.client.meta.events.register("before-send", stop)
    with pytest.raises(NotSent) as caught:
        publisher.client.put_events(Entries=[{"Source": "a", "DetailType": "b", "Detail": "{}"}])
    return urllib.parse.urlsplit(str(caught.value)).netloc, publisher.resource


def asked(imds: Imds) -> set[str]:
    """The paths below services/ that IMDS was asked for."""
    paths = [request.path.partition("/services/")[2] for request in imds.requests()]
    return {path for path in paths if path}


def test_every_partition_that_the_artifact_knows_is_in_this_files_table(aws_data: Path) -> None:
    known = json.loads((aws_data / "partitions.json").read_bytes())
    assert {one["id"] for one in known["partitions"]} == {one.name for one in PARTITIONS}


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize("partition", PARTITIONS, ids=[one.name for one in PARTITIONS])
def test_a_partition_has_its_arn_and_its_host_names(partition: Partition, imds: Imds) -> None:
    name, region, domain, dual_stack, fips = partition
    imds.set(document=identity_document(region=region), partition=None, domain=None)
    own = arn(name, region)
    assert found() == (f"events.{region}.{domain}", own)
    assert found(use_fips=True) == (f"{fips}.{region}.{domain}", own)
    if dual_stack:
        assert found(use_dualstack=True) == (f"events.{region}.{dual_stack}", own)
        both = found(use_fips=True, use_dualstack=True)
        assert both == (f"{fips}.{region}.{dual_stack}", own)
    else:
        with pytest.raises(TattleError, match="dualstack") as caught:
            found(use_dualstack=True)
        assert caught.value.status == 78
    assert asked(imds) == set()


@pytest.mark.usefixtures("somewhere")
def test_a_region_that_is_new_in_a_known_partition_needs_nothing_of_imds(imds: Imds) -> None:
    imds.set(document=identity_document(region="us-gov-south-7"), partition=None, domain=None)
    host = "events.us-gov-south-7.amazonaws.com"
    assert found() == (host, arn("aws-us-gov", "us-gov-south-7"))


@pytest.mark.usefixtures("somewhere")
def test_a_region_that_botocore_does_not_know_has_the_partition_and_domain_that_imds_tells(
    imds: Imds,
) -> None:
    region = "moon-base-1"
    document = identity_document(region=region)
    imds.set(document=document, partition="aws-moon", domain="amazonaws.moon")
    own = arn("aws-moon", region)
    assert found() == ("events.moon-base-1.amazonaws.moon", own)
    assert asked(imds) == {"partition", "domain"}
    assert found(use_fips=True) == ("events-fips.moon-base-1.amazonaws.moon", own)
    assert found(region="eu-west-1") == ("events.eu-west-1.amazonaws.com", own)
    with pytest.raises(TattleError, match="no dual-stack endpoint is known for moon-base-1"):
        found(use_dualstack=True)
    imds.set(partition=None, domain=None)
    assert found() == ("events.moon-base-1.amazonaws.com", arn("aws", region))


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize(
    ("line", "settings", "host"),
    [
        ("use_fips_endpoint = true", {}, "events-fips.us-east-1.amazonaws.com"),
        ("use_dualstack_endpoint = true", {}, "events.us-east-1.api.aws"),
        ("use_fips_endpoint = true", {"use_fips": False}, "events.us-east-1.amazonaws.com"),
    ],
)
def test_roots_aws_files_are_obeyed_where_the_configuration_says_nothing(
    line: str,
    settings: dict[str, bool],
    host: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "config").write_text(f"[default]\n{line}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert found(**settings) == (host, arn("aws", "us-east-1"))


def dialled(instance: Instance, host: str, *settings: str) -> list[str]:
    """Run the smoke test where that host name alone leads to EventBridge, check that it was dialled
    (in the handshake and in the request), and return the event's resources."""
    instance.write("/etc/hosts", "127.0.0.1 localhost\n")
    instance.resolve(host)
    instance.write("/etc/tattle.conf", "\n".join(["[tattle]", *settings]))
    instance.eventbridge.clear()
    done = instance.run([TATTLE], env=LOGIN)
    assert not done.stderr
    (call,) = instance.eventbridge.calls()
    assert (call.host, call.server_name, call.outcome) == (host, host, "accepted")
    (entry,) = instance.eventbridge.entries()
    resources: list[str] = entry.raw["Resources"]
    return resources


@pytest.mark.root
def test_what_was_found_out_is_dialled(instance: Instance) -> None:
    instance.imds.set(document=identity_document(region="cn-north-1"))
    own = [arn("aws-cn", "cn-north-1")]
    assert dialled(instance, "events.cn-north-1.amazonaws.com.cn") == own
    both = ("use-fips = true", "use-dualstack = true")
    assert dialled(instance, "events-fips.cn-north-1.api.amazonwebservices.com.cn", *both) == own


@pytest.mark.root
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
        assert instance.ssh("ubuntu", "true").returncode == 0  # the deliverer's requests, too
        assert len(instance.eventbridge.wait_for(3)) == 3
        hosts = {request.headers["host"] for request in instance.imds.requests()}
        assert hosts == {"[fd00:ec2::254]"}

    def test_eventbridge_is_reached_at_its_dual_stack_names_ipv6_address(
        self, instance: Instance
    ) -> None:
        host = "events.us-east-1.api.aws"
        instance.write("/etc/hosts", f"127.0.0.1 localhost\n2001:db8::1 {host}\n")
        instance.write("/etc/tattle.conf", "[tattle]\nuse-dualstack = yes\n")
        listener = bind("2001:db8::1", 443, instance.network)
        with type(instance.eventbridge)(listener, ca=instance.ca) as eventbridge:
            done = instance.run([TATTLE], env=LOGIN)
            assert not done.stderr
            (call,) = eventbridge.calls()
        assert (call.host, call.server_name) == (host, host)
