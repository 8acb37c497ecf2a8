"""Every failure that a person may meet: what is said, the exit status, what to do, how it comes.

This is the one table. The smoke test and README's rows are held against all of it; `tattle check`
and the log, which show the same error, against some. In message and advice … stands for what
differs from case to case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from standins.ca import EXPIRED, UNTRUSTED, WRONG_HOST
from standins.eventbridge import Rejection
from standins.imds import (
    CREDENTIALS_PATH,
    IDENTITY_PATH,
    ROLE_NOT_ASSUMABLE,
    TOKEN_PATH,
    identity_document,
    role_credentials,
)
from standins.instance import Instance

Provoke = Callable[[Instance], Any]

CONF = "/etc/tattle.conf"
AWS_CONFIG = "/root/.aws/config"
ELSEWHERE = f"not on EC2: set `resource` and `region` in {CONF}"
OPTIONS = "aws ec2 modify-instance-metadata-options --instance-id INSTANCE"
ENABLE = f"{OPTIONS} --http-endpoint enabled; {ELSEWHERE}"
FAULTY = "try again; if it stays so, look at what answers at that address"
REATTACH = "detach the instance profile from the instance, and attach it again"
CLOCK = "set the clock: sudo chronyc makestep; else attach the instance profile again"
AWS_FILES = "fix root's ~/.aws/config, or the variables it was started with"
ASSUMES_A_ROLE = """\
[default]
role_arn = arn:aws:iam::012345678901:role/tattle
credential_source = Ec2InstanceMetadata
region = us-east-1
"""


class Failure(NamedTuple):
    """`findings`: those of `tattle check --send` that then find fault, the first of which says the
    same. Where none is named, only the smoke test is tried."""

    message: str
    status: int
    advice: str
    provoke: Provoke
    env: Mapping[str, str] = {}
    findings: tuple[str, ...] = ()
    undo: Provoke = lambda _: None


def nothing(box: Instance) -> None:
    """It comes by the variables alone."""


def imds(**settings: Any) -> Provoke:
    return lambda box: box.imds.set(**settings)


def eventbridge(**settings: Any) -> Provoke:
    return lambda box: box.eventbridge.set(**settings)


def file(path: str, text: str, mode: int = 0o600) -> Provoke:
    return lambda box: box.write(path, text, mode)


def rejecting(code: str, message: str) -> Provoke:
    return eventbridge(rejections=[Rejection("", code, message)])


def both(*changes: Provoke) -> Provoke:
    return lambda box: [change(box) for change in changes]


def no_cache(box: Instance) -> None:
    script = (
        "mkdir /tmp/kept && mv /var/cache/tattle /tmp/kept; touch /var/cache/tattle /run/tattle"
    )
    box.run(["/bin/sh", "-c", script])


def cache_again(box: Instance) -> None:
    box.run(["rm", "-f", "/var/cache/tattle", "/run/tattle"])
    box.run(["mv", "/tmp/kept/tattle", "/var/cache"])


FAILURES = (
    Failure(
        "no PAM_TYPE: expected open_session or close_session",
        64,
        "set PAM_TYPE=open_session",
        nothing,
        {"PAM_TYPE": ""},
    ),
    Failure(
        "PAM_TYPE is …: expected open_session or close_session",
        64,
        "set PAM_TYPE=open_session",
        nothing,
        {"PAM_TYPE": "auth"},
    ),
    Failure(
        "no PAM_USER: whose session is it?",
        64,
        "set PAM_USER to the user's name",
        nothing,
        {"PAM_USER": ""},
    ),
    Failure(
        "EventBridge rejected the event: MalformedDetail: …",
        65,
        "please report it as an issue of the repository that you have tattle from, with the "
        "event's record",
        rejecting("MalformedDetail", "Detail is malformed."),
    ),
    Failure(
        "an event of … bytes: EventBridge takes less than 262144",
        65,
        f"ask for fewer `fields` in {CONF}",
        nothing,
        {"PAM_USER": "u" * 100_000, "PAM_RHOST": "\x01" * 30_000},
    ),
    Failure(
        "IMDS at … can't be reached (not on EC2?)",
        69,
        ENABLE,
        imds(fault="refuse"),
        findings=("identity", "role", "send"),
    ),
    Failure(
        "IMDS at … does not answer (not on EC2? hop limit too small for a container?)",
        69,
        f"in a container: {OPTIONS} --http-put-response-hop-limit 2; {ELSEWHERE}",
        imds(fault="hang"),
    ),
    Failure(
        "IMDS at … answers 403 to PUT api/token (is the instance metadata service enabled?)",
        69,
        ENABLE,
        imds(fault=403, fault_path=TOKEN_PATH),
    ),
    Failure(
        "IMDS at … answers 404 to GET dynamic/instance-identity/document",
        69,
        ELSEWHERE,
        imds(fault=404, fault_path=IDENTITY_PATH),
    ),
    Failure(
        "IMDS at … answers 429 to GET dynamic/instance-identity/document: asked too often",
        75,
        "nothing: it is tried again. If it lasts, find out who asks IMDS so often",
        imds(fault=429, fault_path=IDENTITY_PATH),
    ),
    Failure(
        "IMDS at … answers GET dynamic/instance-identity/document without end",
        69,
        FAULTY,
        imds(fault="endless", fault_path=IDENTITY_PATH),
    ),
    Failure("IMDS at … answers … to …", 69, FAULTY, imds(fault=500, fault_path=IDENTITY_PATH)),
    Failure(
        "IMDS at … with an identity document without a valid …",
        69,
        FAULTY,
        imds(document=identity_document(accountId="12345")),
    ),
    Failure(
        "IMDS at … is disabled by AWS_EC2_METADATA_DISABLED",
        69,
        "unset AWS_EC2_METADATA_DISABLED",
        nothing,
        {"AWS_EC2_METADATA_DISABLED": "true"},
    ),
    Failure(
        "EventBridge can't be reached: Could not connect to the endpoint URL: …",
        69,
        f"security group, route, VPC endpoint? Through a proxy: `proxy` in {CONF}",
        eventbridge(fault="refuse"),
    ),
    Failure(
        "EventBridge can't be reached: SSL validation failed for … certificate has expired…",
        69,
        "is the clock right? else whoever runs the endpoint must renew its certificate",
        eventbridge(certificate=EXPIRED),
        findings=("endpoint", "send"),
    ),
    Failure(
        "EventBridge can't be reached: SSL validation failed for … doesn't match …",
        69,
        f"`endpoint-url` in {CONF} must name the host that the certificate names",
        eventbridge(certificate=WRONG_HOST),
    ),
    Failure(
        "EventBridge can't be reached: SSL validation failed for …",
        69,
        f"`ca-bundle` in {CONF} must name the authority that signed the certificate",
        eventbridge(certificate=UNTRUSTED),
    ),
    Failure(
        "STS can't be reached: Could not connect to the endpoint URL: …",
        69,
        f"security group, route, VPC endpoint? Through a proxy: `proxy` in {CONF}",
        file(AWS_CONFIG, ASSUMES_A_ROLE),
        {"AWS_MAX_ATTEMPTS": "1"},
    ),
    Failure(
        "EventBridge did not answer, the event may have arrived: …",
        69,
        "a proxy, a firewall or a VPC endpoint that cuts connections? sudo tattle check",
        eventbridge(fault="reset-after"),
    ),
    Failure(
        "can't unpack botocore: …",
        69,
        "make room or repair it: df /var/cache/tattle",
        no_cache,
        undo=cache_again,
    ),
    Failure(
        "EventBridge: ThrottlingException: …",
        75,
        "nothing: it is tried again. If it lasts, ask AWS for a higher PutEvents quota",
        eventbridge(fault="throttle"),
    ),
    Failure(
        "EventBridge: 413: …",
        69,
        "a proxy or a VPC endpoint? It must let 256 KB pass",
        eventbridge(fault=413),
    ),
    Failure(
        "EventBridge: …",
        75,
        "wait: it is tried again. If it lasts: https://health.aws.amazon.com/",
        eventbridge(fault=503),
    ),
    Failure(
        "no credentials: IMDS at … answers … to …",
        69,
        FAULTY,
        imds(fault=500, fault_path=CREDENTIALS_PATH),
    ),
    Failure(
        "no credentials: IMDS at … answers 404 to GET meta-data/iam/security-credentials/",
        77,
        "attach an instance profile: aws ec2 associate-iam-instance-profile --instance-id INSTANCE"
        " --iam-instance-profile Name=PROFILE",
        imds(role=None),
        findings=("role", "send"),
    ),
    Failure(
        "no credentials: IMDS at … gives no credentials for the role …: …",
        77,
        "the role's trust policy must let ec2.amazonaws.com assume it: tattle recipe iam-role.yaml",
        imds(credentials=ROLE_NOT_ASSUMABLE),
    ),
    Failure(
        "no credentials: IMDS at … gives malformed credentials for the role …",
        77,
        REATTACH,
        imds(credentials=role_credentials(Token=None)),
    ),
    Failure(
        "EventBridge: AccessDeniedException: …",
        77,
        "the role must allow it: tattle recipe iam-policy.json",
        eventbridge(fault="access-denied"),
        findings=("send",),
    ),
    Failure("EventBridge: InvalidSignatureException: …", 77, CLOCK, eventbridge(clock_skew=3600.0)),
    Failure("EventBridge: ExpiredTokenException: …", 77, CLOCK, eventbridge(fault="expired-token")),
    Failure(
        "… belongs to or can be written by somebody else",
        77,
        "sudo chown root … && sudo chmod go-w …",
        file(AWS_CONFIG, "[default]\n", 0o666),
        findings=("identity", "role", "send"),
    ),
    Failure(
        f"{CONF} belongs to or can be written by somebody else",
        78,
        f"sudo chown root {CONF} && sudo chmod go-w {CONF}",
        file(CONF, "[tattle]\n", 0o666),
        findings=("configuration",),
    ),
    Failure(
        f"{CONF}, line …: …",
        78,
        f"fix that line: sudoedit +… {CONF}",
        file(CONF, "[tattle]\nsauce = x\n"),
        findings=("configuration",),
    ),
    Failure(
        "no region",
        78,
        f"set `region` next to `resource` in {CONF}",
        file(CONF, "[tattle]\nresource = rack 7\n"),
    ),
    Failure(
        "no dual-stack endpoint is known for …",
        78,
        f"set `endpoint-url` in {CONF}",
        both(
            file(CONF, "[tattle]\nregion = xx-nowhere-1\nuse-dualstack = true\n"),
            imds(domain="example.com"),
        ),
    ),
    Failure(
        "EventBridge, event bus …: ResourceNotFoundException: …",
        78,
        f"correct `event-bus` in {CONF}; list them: aws events list-event-buses",
        both(
            file(CONF, "[tattle]\nevent-bus = secrity\n"),
            eventbridge(missing_buses=["secrity"]),
        ),
        findings=("bus", "send"),
    ),
    Failure("configuration: …", 78, AWS_FILES, file(AWS_CONFIG, "no section\n")),
)


def pattern(text: str) -> str:
    """Return the regular expression for a message or an advice of the table."""
    return re.escape(text).replace("…", ".*")
