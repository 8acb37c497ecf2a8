"""The recipes for those who receive the events: linted, deployed, and what arrives with them.

moto plays AWS: it deploys what it knows of a template, and matches the events that tattle sends.
What it can't do is done here: the input transformer (standins/transformer.py), API destinations and
Firehose in CloudFormation (made by their own APIs), Lambda (the code is run in the test).
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conftest import Moto, Tattle
from standins.transformer import NotDeliveredError, transform
from support import ROOT, need
from tattle.delivery.fields import FROM_INSTANCE, FROM_SESSION, FROM_SSHD
from tattle.shell import recipe

pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning")

VENV = Path(sys.executable).parent
FOLDER = ROOT / "src" / "tattle" / "recipes"
STACK = "tattle"
ACCOUNT = "123456789012"  # moto's
ARN = "arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"  # the stand-in for IMDS's
DETAIL_TYPE = "SSH connection event detected"
SESSION = "32b61a4c0f43190e01371c03d49fa476"

PARAMETERS: dict[str, dict[str, str]] = {
    "iam-role.yaml": {},
    "mail.yaml": {"Endpoint": "security@example.com"},
    "chat.yaml": {"SlackWorkspace": "T0123ABCD", "SlackChannel": "C0123ABCD"},
    "webhook.yaml": {"Service": "Slack", "Url": "https://hooks.slack.com/services/x"},
    "lambda.yaml": {"WebhookUrl": "https://hooks.slack.com/services/x"},
    "logs.yaml": {},
    "archive.yaml": {},
    "central-bus.yaml": {"Organization": "o-a1b2c3d4e5"},
    "silence.yaml": {"Email": "security@example.com"},
}
TEMPLATES = [*PARAMETERS]
CONSUMERS = [name for name in TEMPLATES if "Undelivered:" in recipe.text(name)]
# Not the site's choice, but a user's or that of whoever names a host: these may hold a quote.
CHOSEN_BY_OTHERS = {"$.detail.username", "$.detail.remote_host"}
# Actions that know no resources: https://docs.aws.amazon.com/service-authorization/latest/reference/
WITHOUT_RESOURCES = {"ec2:DescribeInstances", "cloudwatch:PutMetricData"}


class Login(NamedTuple):
    username: str
    remote_host: str | None


QUOTE = Login('al"ice', "2001:db8::1")
NOWHERE = Login("bob", None)
PLAIN = Login("ubuntu", "1.2.3.4")


def loaded(name: str) -> Any:
    """A template with `!Ref` and so on as CloudFormation's JSON has them."""
    cfn_yaml = importlib.import_module("cfnlint.decode.cfn_yaml")  # untyped
    return json.loads(json.dumps(cfn_yaml.load(str(FOLDER / name))))


def resources(name: str, *kinds: str) -> dict[str, Any]:
    """A template's resources of these kinds; their properties by logical name."""
    found = loaded(name)["Resources"].items()
    return {key: one.get("Properties", {}) for key, one in found if one["Type"] in kinds}


def walk(node: Any) -> Iterator[Any]:
    yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    for child in children:
        yield from walk(child)


def statements(name: str) -> Iterator[dict[str, Any]]:
    for node in walk(loaded(name)):
        if isinstance(node, dict) and "Effect" in node:
            yield node
        if isinstance(node, dict) and str(node.get("Fn::Sub")).startswith("{"):
            yield from json.loads(node["Fn::Sub"])["Statement"]


def transformers(name: str) -> list[dict[str, Any]]:
    """A template's input transformers, one for each body that a mapping chooses from."""
    found = [node for node in walk(loaded(name)) if isinstance(node, dict)]
    found = [node for node in found if "InputTemplate" in node]
    bodies = [one["Body"] for one in loaded(name).get("Mappings", {}).get("Services", {}).values()]
    return [
        {**one, "InputTemplate": template}
        for one in found
        for template in (
            bodies if isinstance(one["InputTemplate"], dict) else [one["InputTemplate"]]
        )
    ]


class TestTemplates:
    @pytest.mark.parametrize("name", TEMPLATES)
    def test_cfn_lint_has_nothing_to_say(self, name: str) -> None:
        command = [str(VENV / "cfn-lint"), "--", str(FOLDER / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr

    def test_all_of_them_are_looked_at(self) -> None:
        known = {
            name for name, _ in recipe.recipes() if "AWSTemplateFormatVersion" in recipe.text(name)
        }
        assert known == {*TEMPLATES}

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_its_comment_deploys_it(self, name: str) -> None:
        """The command names the file, parameters that exist, all that have no default, and the
        capability that CloudFormation asks for."""
        comment, _, _ = recipe.text(name).partition("AWSTemplateFormatVersion")
        assert f"tattle recipe {name} >{name}" in comment
        assert f"--template-file {name}" in comment
        known = loaded(name).get("Parameters", {})
        overrides = " ".join(re.findall(r"--parameter-overrides (.+)", comment))
        given = {*re.findall(r"(\w+)=", overrides)}
        assert given <= {*known, "EventBus"}  # for the other recipes, in central-bus.yaml
        assert {key for key, one in known.items() if "Default" not in one} <= given
        needs_capability = bool(resources(name, "AWS::IAM::Role"))
        assert ("--capabilities CAPABILITY_IAM" in comment) == needs_capability

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_it_works_in_every_partition(self, name: str) -> None:
        _, _, template = recipe.text(name).partition("\nAWSTemplateFormatVersion")
        assert not re.search(r"\barn:aws", template)

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_what_it_allows_is_least(self, name: str) -> None:
        for one in statements(name):
            actions = one["Action"] if isinstance(one["Action"], list) else [one["Action"]]
            if one["Effect"] == "Deny":
                continue
            assert not any("*" in action for action in actions)
            if one.get("Resource") == "*":
                assert {*actions} <= WITHOUT_RESOURCES
            if one.get("Principal") == "*":
                assert {*one["Condition"]["StringEquals"]} == {
                    "aws:PrincipalOrgID",
                    "events:source",
                }

    @pytest.mark.parametrize("name", CONSUMERS)
    def test_what_is_not_delivered_is_kept(self, name: str) -> None:
        rules = resources(name, "AWS::Events::Rule")
        (rule,) = rules
        (queue,) = resources(name, "AWS::SQS::Queue")
        (policy,) = resources(name, "AWS::SQS::QueuePolicy").values()
        for target in rules[rule]["Targets"]:
            assert target["DeadLetterConfig"]["Arn"] == {"Fn::GetAtt": [queue, "Arn"]}
        assert policy["Queues"] == [{"Ref": queue}]
        (statement,) = policy["PolicyDocument"]["Statement"]
        assert statement["Principal"] == {"Service": "events.amazonaws.com"}
        source = {"ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": [rule, "Arn"]}}}
        assert statement["Condition"] == source

    @pytest.mark.parametrize("name", [name for name in TEMPLATES if transformers(name)])
    def test_no_value_of_a_users_stands_inside_quotes(self, name: str) -> None:
        """EventBridge doesn't escape it there: a quote in it would break the message."""
        for one in transformers(name):
            for key, path in one["InputPathsMap"].items():
                if path in CHOSEN_BY_OTHERS:
                    outside = re.sub(r'"[^"]*"', '""', one["InputTemplate"])
                    assert one["InputTemplate"].count(f"<{key}>") == outside.count(f"<{key}>")
                    assert f"<{key}>" in outside


def for_moto(moto: Moto, name: str) -> dict[str, Any]:
    """The template for moto: what its CloudFormation does not know is made by its own API, and
    what refers to it has the ARN."""
    template = loaded(name)
    made = {}
    if name == "webhook.yaml":
        made["Destination"] = make_api_destination(moto)
    if name == "archive.yaml":
        made["Stream"] = make_stream(moto)

    def filled(node: Any) -> Any:
        if isinstance(node, dict) and node.get("Fn::GetAtt", [""])[0] in made:
            return made[node["Fn::GetAtt"][0]]
        if isinstance(node, dict):
            return {key: filled(child) for key, child in node.items() if key not in made}
        return [filled(child) for child in node] if isinstance(node, list) else node

    changed = filled(template)
    if name == "webhook.yaml":
        del changed["Resources"]["Connection"]
    return dict(changed)


def make_api_destination(moto: Moto) -> str:
    connection = moto.events.create_connection(
        Name="webhook",
        AuthorizationType="API_KEY",
        AuthParameters={"ApiKeyAuthParameters": {"ApiKeyName": "X", "ApiKeyValue": "x"}},
    )
    made = moto.events.create_api_destination(
        Name="webhook",
        ConnectionArn=connection["ConnectionArn"],
        InvocationEndpoint="https://example.com",
        HttpMethod="POST",
    )
    return str(made["ApiDestinationArn"])


def make_stream(moto: Moto) -> str:
    moto.client("s3").create_bucket(Bucket="archive")
    (stream,) = resources("archive.yaml", "AWS::KinesisFirehose::DeliveryStream").values()
    destination = stream["ExtendedS3DestinationConfiguration"]
    made = moto.client("firehose").create_delivery_stream(
        DeliveryStreamName="archive",
        DeliveryStreamType=stream["DeliveryStreamType"],
        ExtendedS3DestinationConfiguration={
            "BucketARN": "arn:aws:s3:::archive",
            "RoleARN": f"arn:aws:iam::{ACCOUNT}:role/write",
            "ProcessingConfiguration": destination["ProcessingConfiguration"],
        },
    )
    return str(made["DeliveryStreamARN"])


def deploy(moto: Moto, name: str, **parameters: str) -> None:
    cloudformation = moto.client("cloudformation")
    given = {**PARAMETERS[name], **parameters}
    cloudformation.create_stack(
        StackName=STACK,
        TemplateBody=json.dumps(for_moto(moto, name)),
        Parameters=[{"ParameterKey": key, "ParameterValue": one} for key, one in given.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    (stack,) = cloudformation.describe_stacks(StackName=STACK)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    for rule in moto.events.list_rules()["Rules"]:
        if "ScheduleExpression" in rule:  # to moto, one without a pattern matches every event
            moto.events.remove_targets(Rule=rule["Name"], Ids=["watch"])


def watch(moto: Moto, bus: str = "default") -> tuple[dict[str, Any], str]:
    """Put a queue in the place of the one rule's target; the target, and the queue's URL."""
    rules = moto.events.list_rules(EventBusName=bus)["Rules"]
    (rule,) = [one["Name"] for one in rules if "EventPattern" in one]
    (target,) = moto.events.list_targets_by_rule(Rule=rule, EventBusName=bus)["Targets"]
    url = moto.sqs.create_queue(QueueName="in-place-of-the-target")["QueueUrl"]
    asked = moto.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    queue = {"Id": target["Id"], "Arn": asked["Attributes"]["QueueArn"]}
    moto.events.put_targets(Rule=rule, EventBusName=bus, Targets=[queue])
    return target, url


def matched(moto: Moto, url: str) -> list[dict[str, Any]]:
    """The events that the rule let through."""
    found: list[dict[str, Any]] = []
    asking = {"QueueUrl": url, "MaxNumberOfMessages": 10}
    while messages := moto.sqs.receive_message(**asking).get("Messages"):
        for message in messages:
            found.append(json.loads(message["Body"]))
            moto.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return found


def report(tattle: Tattle, moto: Moto, login: Login, kind: str = "open_session") -> None:
    """Have tattle report a login to moto's EventBridge."""
    env = {"PAM_TYPE": kind, "PAM_USER": login.username, "PAM_RHOST": login.remote_host}
    done = tattle(env={**env, "AWS_ENDPOINT_URL_EVENTBRIDGE": moto.url})
    assert done.returncode == 0, done.stderr


def arriving(target: Mapping[str, Any], event: Mapping[str, Any]) -> Any:
    """What the target gets of an event. `pytest -s` shows it."""
    transformer = target.get("InputTransformer")
    message = json.loads(transform(transformer, event) if transformer else json.dumps(event))
    print(f"\n{target['Arn'].split(':')[2]}: {json.dumps(message)}")
    return message


def arrivals(
    moto: Moto, tattle: Tattle, name: str, *logins: Login, **parameters: str
) -> list[tuple[dict[str, Any], Any]]:
    """Deploy, report the logins and one logout each; each event that matched, and what arrived."""
    deploy(moto, name, **parameters)
    target, url = watch(moto)
    for login in logins:
        report(tattle, moto, login)
        report(tattle, moto, login, "close_session")
    return [(event, arriving(target, event)) for event in matched(moto, url)]


def with_event_as_it_is(moto: Moto, tattle: Tattle, name: str, **parameters: str) -> list[Any]:
    found = arrivals(moto, tattle, name, QUOTE, NOWHERE, **parameters)
    assert [event for event, _ in found] == [message for _, message in found]
    return [message for _, message in found]


def details(events: list[Any]) -> list[tuple[str, str, str]]:
    return [tuple(event["detail"].values()) for event in events]


def credentials() -> dict[str, str]:
    """What programs of AWS's need in their environment to talk to moto."""
    return {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "moto",
        "AWS_SECRET_ACCESS_KEY": "moto",
    }


class TestDeployCommands:
    @pytest.mark.parametrize("name", ["mail.yaml", "iam-role.yaml"])
    def test_what_the_comment_says_to_type_deploys_it(
        self, moto_server: Moto, tmp_path: Path, name: str
    ) -> None:
        """With the AWS CLI that the tests have: one without a capability, one with."""
        typed = "\n".join(re.findall(r"(?m)^# {3}(.*)$", recipe.text(name)))
        ours = f'tattle() {{ cat "{FOLDER}/$2"; }}\n'
        ours += 'aws() { command aws --endpoint-url "$MOTO" "$@"; }\n'
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", ours + typed],
            cwd=tmp_path,
            env={
                "PATH": f"{VENV}:/usr/bin:/bin",
                "HOME": str(tmp_path),
                "LANG": "C.UTF-8",
                "MOTO": moto_server.url,
                **credentials(),
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        made = moto_server.client("cloudformation").list_stacks()["StackSummaries"]
        assert [one["StackStatus"] for one in made] == ["CREATE_COMPLETE"]


class TestIamRole:
    def test_it_allows_what_the_policy_does(self) -> None:
        (role,) = resources("iam-role.yaml", "AWS::IAM::Role").values()
        (policy,) = role["Policies"]
        (statement,) = policy["PolicyDocument"]["Statement"]
        arn = statement["Resource"].pop("Fn::Sub")
        values = {"Partition": "aws", "Region": "us-east-1", "AccountId": "012345678901"}
        for key, value in values.items():
            arn = arn.replace(f"${{AWS::{key}}}", value)
        statement["Resource"] = arn.replace("${EventBus}", "default")
        assert policy["PolicyDocument"] == json.loads(recipe.text("iam-policy.json"))


SESSIONS = [
    ('al"ice', "2001:db8::1", "opened"),
    ('al"ice', "2001:db8::1", "closed"),
    ("bob", "", "opened"),
    ("bob", "", "closed"),
]
LOGINS = [one for one in SESSIONS if one[2] == "opened"]


class TestMail:
    def test_people_get_a_short_text_for_a_login(self, moto_server: Moto, tattle: Tattle) -> None:
        (quote, first), (nowhere, second) = arrivals(
            moto_server, tattle, "mail.yaml", QUOTE, NOWHERE
        )
        at = {"on": ARN, "at": quote["time"]}
        assert first == {"SSH login": 'al"ice', "from": "2001:db8::1", **at}
        at = {"on": ARN, "at": nowhere["time"]}
        assert second == {"SSH login": "bob", "from": "", **at}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", at["at"])

    def test_an_https_endpoint_gets_the_event(self, moto_server: Moto, tattle: Tattle) -> None:
        told = with_event_as_it_is(
            moto_server, tattle, "mail.yaml", Protocol="https", Endpoint="https://example.com"
        )
        assert details(told) == LOGINS

    def test_it_subscribes(self, moto_server: Moto) -> None:
        deploy(moto_server, "mail.yaml")
        (made,) = moto_server.client("sns").list_subscriptions()["Subscriptions"]
        assert (made["Protocol"], made["Endpoint"]) == ("email", "security@example.com")


class TestChat:
    def test_a_logout_lands_under_its_login(self, moto_server: Moto) -> None:
        deploy(moto_server, "chat.yaml")
        target, url = watch(moto_server)
        for state in ("opened", "closed"):
            put(moto_server, session=state, session_id=SESSION)
        opened, closed = [arriving(target, event) for event in matched(moto_server, url)]
        assert opened["metadata"]["threadId"] == f"ssh-session-{SESSION}"
        assert closed["metadata"]["threadId"] == opened["metadata"]["threadId"]
        assert opened["content"]["description"].startswith(f"SSH session opened on {ARN} at ")
        assert closed["content"]["description"].startswith(f"SSH session closed on {ARN} at ")

    def test_it_tells_who_and_from_where(self, moto_server: Moto, tattle: Tattle) -> None:
        found = arrivals(moto_server, tattle, "chat.yaml", QUOTE, NOWHERE)
        told = [message["content"] for _, message in found]
        assert [(one["title"], one["keywords"]) for one in told] == [
            ('al"ice', ["2001:db8::1"]),
            ('al"ice', ["2001:db8::1"]),
            ("bob", [""]),
            ("bob", [""]),
        ]

    def test_it_is_of_the_services_schema(self, moto_server: Moto, tattle: Tattle) -> None:
        """https://docs.aws.amazon.com/chatbot/latest/adminguide/custom-notifs.html"""
        content = {"textType", "title", "description", "nextSteps", "keywords"}
        metadata = {"threadId", "summary", "eventType", "relatedResources", "additionalContext"}
        for _, message in arrivals(moto_server, tattle, "chat.yaml", QUOTE):
            assert {*message} <= {"version", "source", "id", "content", "metadata"}
            assert (message["version"], message["source"]) == ("1.0", "custom")
            assert message["content"]["textType"] == "client-markdown"
            assert {*message["content"]} <= content
            assert {*message["metadata"]} <= metadata
            lists = [message["content"]["keywords"], message["metadata"]["relatedResources"]]
            lists += [message["metadata"]["additionalContext"].values()]
            assert all(isinstance(one, str) for some in lists for one in some)

    def test_without_session_id_it_still_arrives(self, moto_server: Moto, tattle: Tattle) -> None:
        ((_, message), _) = arrivals(moto_server, tattle, "chat.yaml", PLAIN)
        assert message["metadata"]["threadId"] == "ssh-session-"


class TestWebhook:
    def body(self, moto: Moto, tattle: Tattle, service: str) -> list[Any]:
        found = arrivals(moto, tattle, "webhook.yaml", QUOTE, NOWHERE, Service=service, Key="k")
        assert [event["detail"]["session"] for event, _ in found] == ["opened", "opened"]
        return [message for _, message in found]

    def test_slack(self, moto_server: Moto, tattle: Tattle) -> None:
        """https://api.slack.com/reference/messaging/attachments"""
        for body, host in zip(self.body(moto_server, tattle, "Slack"), ("2001:db8::1", "")):
            (attachment,) = body["attachments"]
            assert body["text"] == f"SSH login on {ARN}"
            shown = {one["title"]: one["value"] for one in attachment["fields"]}
            assert (shown["User"], shown["From"]) == ('al"ice' if host else "bob", host)

    def test_pagerduty(self, moto_server: Moto, tattle: Tattle) -> None:
        """https://developer.pagerduty.com/docs/send-alert-event"""
        for body, host in zip(self.body(moto_server, tattle, "PagerDuty"), ("2001:db8::1", "")):
            assert body["event_action"] == "trigger"
            assert body["dedup_key"]
            assert {"summary", "source", "severity"} <= {*body["payload"]}
            assert body["payload"]["custom_details"] == {
                "username": 'al"ice' if host else "bob",
                "remote_host": host,
            }

    def test_pagerdutys_key_goes_into_the_body(self) -> None:
        (connection,) = resources("webhook.yaml", "AWS::Events::Connection").values()
        _, given, otherwise = connection["AuthParameters"]["InvocationHttpParameters"]["Fn::If"]
        assert otherwise == {"Ref": "AWS::NoValue"}
        (parameter,) = given["BodyParameters"]
        assert parameter == {"Key": "routing_key", "Value": {"Ref": "Key"}, "IsValueSecret": True}

    def test_datadog(self, moto_server: Moto, tattle: Tattle) -> None:
        """https://docs.datadoghq.com/api/latest/logs/#send-logs"""
        for body, host in zip(self.body(moto_server, tattle, "Datadog"), ("2001:db8::1", "")):
            assert {"ddsource", "service", "hostname", "message"} <= {*body}
            assert body["usr"]["name"] == ('al"ice' if host else "bob")
            assert body["network"]["client"]["ip"] == host

    @pytest.mark.parametrize("service", ["Slack", "PagerDuty", "Datadog"])
    def test_each_service_has_all_that_the_template_looks_up(self, service: str) -> None:
        known = loaded("webhook.yaml")["Mappings"]["Services"]
        assert loaded("webhook.yaml")["Parameters"]["Service"]["AllowedValues"] == [*known]
        assert {*known[service]} == {"Header", "RequestsPerSecond", "Body"}


class Received(NamedTuple):
    url: str
    bodies: list[Any]


@pytest.fixture
def slack() -> Iterator[Received]:
    """A server in Slack's place."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Received(f"http://127.0.0.1:{server.server_port}/services/x", bodies)
        server.shutdown()


def function(
    monkeypatch: pytest.MonkeyPatch, moto: Moto, name: str, **variables: str
) -> types.ModuleType:
    """The code of a template's Lambda function, as a module, with moto for AWS."""
    (properties,) = resources(name, "AWS::Lambda::Function").values()
    assert {*properties["Environment"]["Variables"]} == {*variables}
    assert properties["Handler"] == "index.handler"
    for key, value in {"AWS_ENDPOINT_URL": moto.url, **credentials(), **variables}.items():
        monkeypatch.setenv(key, value)
    module = types.ModuleType("index")
    exec(compile(properties["Code"]["ZipFile"], f"{name}: index.py", "exec"), vars(module))
    return module


class TestLambda:
    def test_slack_gets_a_sentence_for_a_login(
        self,
        moto_server: Moto,
        tattle: Tattle,
        slack: Received,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        secret = moto_server.client("secretsmanager").create_secret(
            Name="webhook", SecretString=slack.url
        )
        found = arrivals(
            moto_server, tattle, "lambda.yaml", QUOTE, NOWHERE, Login("<!channel>&", "1.2.3.4")
        )
        index = function(monkeypatch, moto_server, "lambda.yaml", WEBHOOK=secret["ARN"])
        for event, message in found:
            assert message == event
            index.handler(message, None)
        print(json.dumps(slack.bodies))
        times = [event["time"] for event, _ in found]
        assert [body["text"] for body in slack.bodies] == [
            f'al"ice logged in to i-abc123abc123 from 2001:db8::1 at {times[0]}.',
            f"bob logged in to i-abc123abc123 from an unknown host at {times[1]}.",
            f"&lt;!channel&gt;&amp; logged in to i-abc123abc123 from 1.2.3.4 at {times[2]}.",
        ]

    def test_what_slack_refuses_fails(
        self, moto_server: Moto, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So that Lambda tries again and keeps the event."""
        secret = moto_server.client("secretsmanager").create_secret(
            Name="webhook", SecretString=f"{moto_server.url}/nothing-here/at/all"
        )
        index = function(monkeypatch, moto_server, "lambda.yaml", WEBHOOK=secret["ARN"])
        detail = {"username": "bob", "session": "opened"}
        event = {"detail": detail, "resources": [ARN], "time": "2026-01-02T03:04:05Z"}
        with pytest.raises(OSError, match="HTTP Error"):
            index.handler(event, None)


class TestLogs:
    def test_every_event_is_logged_as_it_is(self, moto_server: Moto, tattle: Tattle) -> None:
        deploy(moto_server, "logs.yaml")
        for login in (QUOTE, NOWHERE):
            report(tattle, moto_server, login)
            report(tattle, moto_server, login, "close_session")
        events = logged(moto_server, f"/aws/events/{STACK}")
        for event in events:
            print(f"\nlogs: {json.dumps(event)}")
            assert event["resources"] == [ARN]
        assert details(events) == SESSIONS

    def test_eventbridge_may_write_to_the_group(self, moto_server: Moto) -> None:
        deploy(moto_server, "logs.yaml")
        (policy,) = moto_server.client("logs").describe_resource_policies()["resourcePolicies"]
        (statement,) = json.loads(policy["policyDocument"])["Statement"]
        assert "events.amazonaws.com" in statement["Principal"]["Service"]
        assert {*statement["Action"]} == {"logs:CreateLogStream", "logs:PutLogEvents"}
        group = f"arn:aws:logs:us-east-1:{ACCOUNT}:log-group:/aws/events/{STACK}"
        assert statement["Resource"] == group  # CloudFormation's own ends with :*, its streams

    def test_the_queries_ask_for_fields_that_there_are(self) -> None:
        fields = {*FROM_SESSION, *FROM_SSHD, *FROM_INSTANCE}
        named = re.findall(r"#   fields = (.*)", recipe.text("logs.yaml"))[0].split()
        queries = resources("logs.yaml", "AWS::Logs::QueryDefinition")
        assert len(queries) == 3
        for query in queries.values():
            asked = {*re.findall(r"\bdetail\.(\w+)", query["QueryString"])}
            assert asked <= fields
            assert asked <= {*named}


def logged(moto: Moto, group: str) -> list[Any]:
    """The events in a log group, in the order in which they were written."""
    found = moto.client("logs").filter_log_events(logGroupName=group)["events"]
    ordered = sorted(found, key=lambda one: (one["timestamp"], one["ingestionTime"]))
    return [json.loads(one["message"]) for one in ordered]


class TestArchive:
    def test_firehose_gets_every_event_as_it_is(self, moto_server: Moto, tattle: Tattle) -> None:
        told = with_event_as_it_is(moto_server, tattle, "archive.yaml")
        assert details(told) == SESSIONS
        firehose, s3 = moto_server.client("firehose"), moto_server.client("s3")
        for event in told:
            data = json.dumps(event).encode()
            firehose.put_record(DeliveryStreamName="archive", Record={"Data": data})
        keys = [one["Key"] for one in s3.list_objects_v2(Bucket="archive")["Contents"]]
        kept = [s3.get_object(Bucket="archive", Key=key)["Body"].read() for key in keys]
        assert sorted(details([json.loads(one) for one in kept])) == sorted(SESSIONS)

    def test_each_event_is_a_line(self) -> None:
        (stream,) = resources("archive.yaml", "AWS::KinesisFirehose::DeliveryStream").values()
        processing = stream["ExtendedS3DestinationConfiguration"]["ProcessingConfiguration"]
        assert [one["Type"] for one in processing["Processors"]] == ["AppendDelimiterToRecord"]

    def test_the_bucket_is_closed_and_stays(self) -> None:
        (bucket,) = resources("archive.yaml", "AWS::S3::Bucket").values()
        assert len(bucket["PublicAccessBlockConfiguration"]) == 4
        assert all(bucket["PublicAccessBlockConfiguration"].values())
        assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
        assert loaded("archive.yaml")["Resources"]["Bucket"]["DeletionPolicy"] == "Retain"


class TestCentralBus:
    def test_other_recipes_hang_on_to_it(self, moto_server: Moto) -> None:
        deploy(moto_server, "central-bus.yaml")
        (bus,) = [
            one
            for one in moto_server.events.list_event_buses()["EventBuses"]
            if one["Name"] != "default"
        ]
        made = moto_server.client("cloudformation")
        made.create_stack(
            StackName="logs",
            TemplateBody=json.dumps(for_moto(moto_server, "logs.yaml")),
            Parameters=[{"ParameterKey": "EventBus", "ParameterValue": bus["Name"]}],
        )
        for login in (QUOTE, NOWHERE):
            put(
                moto_server,
                bus=bus["Arn"],
                username=login.username,
                remote_host=login.remote_host or "",
            )
        put(moto_server, username="on-another-bus")
        events = logged(moto_server, "/aws/events/logs")
        print(f"\ncentral bus: {json.dumps(events)}")
        assert details(events) == LOGINS

    def test_members_of_the_organization_may_send_and_nobody_else(self) -> None:
        """moto's CloudFormation does not know this resource."""
        (policy,) = resources("central-bus.yaml", "AWS::Events::EventBusPolicy").values()
        statement = policy["Statement"]
        assert (statement["Effect"], statement["Action"]) == ("Allow", "events:PutEvents")
        assert statement["Resource"] == {"Fn::GetAtt": ["Bus", "Arn"]}
        assert statement["Condition"] == {
            "StringEquals": {
                "aws:PrincipalOrgID": {"Ref": "Organization"},
                "events:source": {"Ref": "Source"},
            }
        }


def put(moto: Moto, bus: str = "default", **detail: str) -> None:
    """Send an event of a site that has other fields, or another bus, than the default."""
    plain = {"username": "ubuntu", "remote_host": "1.2.3.4", "session": "opened"}
    answer = moto.events.put_events(
        Entries=[
            {
                "EventBusName": bus,
                "Source": "com.unbounce.tattle",
                "DetailType": DETAIL_TYPE,
                "Resources": [ARN],
                "Detail": json.dumps({**plain, **detail}),
            }
        ]
    )
    assert answer["FailedEntryCount"] == 0


class TestSilence:
    GROUP = f"/aws/events/{STACK}"
    HOURS = 3

    @pytest.fixture
    def watching(self, moto_server: Moto, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
        deploy(moto_server, "silence.yaml")
        variables = {"SIGNS_OF_LIFE": self.GROUP, "TAG_KEY": "tattle", "HOURS": str(self.HOURS)}
        return function(monkeypatch, moto_server, "silence.yaml", STACK=STACK, **variables)

    def launch(self, moto: Moto, tag: str = "tattle") -> str:
        tags = [{"ResourceType": "instance", "Tags": [{"Key": tag, "Value": ""}]}]
        made = moto.client("ec2").run_instances(
            ImageId="ami-12c6146b", MinCount=1, MaxCount=1, TagSpecifications=tags
        )
        return str(made["Instances"][0]["InstanceId"])

    def sign_of_life(self, moto: Moto, instance: str) -> None:
        arn = f"arn:aws:ec2:us-east-1:{ACCOUNT}:instance/{instance}"
        entry = {"Source": "com.unbounce.tattle", "DetailType": "tattle check", "Detail": "{}"}
        moto.events.put_events(Entries=[{**entry, "Resources": [arn]}])

    def test_tattle_check_is_a_sign_of_life(self, moto_server: Moto, tattle: Tattle) -> None:
        deploy(moto_server, "silence.yaml")
        tattle("check", "--send", env={"AWS_ENDPOINT_URL_EVENTBRIDGE": moto_server.url})
        report(tattle, moto_server, PLAIN)  # a login is none
        (event,) = logged(moto_server, self.GROUP)
        assert (event["detail-type"], event["resources"]) == ("tattle check", [ARN])

    def test_it_finds_the_instances_that_are_silent(
        self, moto_server: Moto, watching: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        silent, alive = self.launch(moto_server), self.launch(moto_server)
        self.launch(moto_server, tag="something-else")
        stopped = self.launch(moto_server)
        moto_server.client("ec2").stop_instances(InstanceIds=[stopped])
        time.sleep(1.1)  # launch times are in whole seconds
        now = time.time()
        self.sign_of_life(moto_server, alive)
        monkeypatch.setattr(time, "time", lambda: now + self.HOURS * 3600)
        assert watching.handler({}, None) == [silent]
        assert self.counted(moto_server) == 1

    def test_an_instance_that_has_just_started_may_be_silent(
        self, moto_server: Moto, watching: Any
    ) -> None:
        self.launch(moto_server)
        assert watching.handler({}, None) == []
        assert self.counted(moto_server) == 0

    def counted(self, moto: Moto) -> float:
        """The value of the metric that the alarm looks at."""
        (alarm,) = resources("silence.yaml", "AWS::CloudWatch::Alarm").values()
        assert alarm["Dimensions"] == [{"Name": "Stack", "Value": {"Ref": "AWS::StackName"}}]
        now = time.time()
        (point,) = moto.client("cloudwatch").get_metric_statistics(
            Namespace=alarm["Namespace"],
            MetricName=alarm["MetricName"],
            Dimensions=[{"Name": "Stack", "Value": STACK}],
            StartTime=now - 24 * 3600,
            EndTime=now + 24 * 3600,
            Period=2 * 24 * 3600,
            Statistics=[alarm["Statistic"]],
        )["Datapoints"]
        return float(point["Maximum"])


class TestMuting:
    OTHERS = (QUOTE, NOWHERE, PLAIN, Login("alice", "bastion.example.com"), Login("x", "100.0.0.1"))
    MUTED: Mapping[str, tuple[Login, ...]] = {
        "mute-user.json": (Login("deploy", "1.2.3.4"), Login("ansible", None)),
        "mute-network.json": (Login("root", "10.1.2.3"), Login("bob", "192.168.0.1")),
        "mute-loop.json": (Login("deploy", "10.1.2.3"),),
    }
    NOT_MUTED = (Login("deploy", "1.2.3.4"), Login("alice", "10.1.2.3"))  # by mute-loop.json

    def through(self, moto: Moto, name: str, logins: tuple[Login, ...]) -> set[Login]:
        moto.events.put_rule(Name="muting", EventPattern=recipe.text(name))
        queue = {"Id": "queue", "Arn": f"arn:aws:sqs:us-east-1:{ACCOUNT}:none"}
        moto.events.put_targets(Rule="muting", Targets=[queue])
        _, url = watch(moto)
        for login in logins:
            put(moto, username=login.username, remote_host=login.remote_host or "")
            put(moto, username=login.username, session="closed")
        return {
            Login(one["detail"]["username"], one["detail"]["remote_host"] or None)
            for one in matched(moto, url)
        }

    @pytest.mark.parametrize("name", MUTED)
    def test_it_leaves_out_those_and_nobody_else(self, moto_server: Moto, name: str) -> None:
        others = self.OTHERS + (self.NOT_MUTED if name == "mute-loop.json" else ())
        assert self.through(moto_server, name, (*self.MUTED[name], *others)) == {*others}

    def test_they_are_all(self) -> None:
        named = {name for name, _ in recipe.recipes() if name.startswith("mute-")}
        assert named == {*self.MUTED}

    @pytest.mark.parametrize("name", MUTED)
    def test_eventbridge_knows_the_operators(self, name: str) -> None:
        """https://github.com/aws/event-ruler, JsonRuleCompiler: moto would take others, too."""
        for node in walk(json.loads(recipe.text(name))):
            if isinstance(node, dict) and isinstance(node.get("anything-but"), dict):
                assert {*node["anything-but"]} <= {
                    "prefix",
                    "suffix",
                    "equals-ignore-case",
                    "wildcard",
                }


def plain(node: Any) -> Any:
    """What python-hcl2 read, without the quotes around strings and its own marks."""
    if isinstance(node, dict):
        return {plain(key): plain(child) for key, child in node.items() if key != "__is_block__"}
    if isinstance(node, list):
        return [plain(child) for child in node]
    if isinstance(node, str) and node[:1] == node[-1:] == '"':
        return json.loads(node)
    return node


class TestTerraform:
    """Parsed, not applied: Terraform's provider for AWS does not come from PyPI."""

    @pytest.fixture(scope="class")
    def hcl(self) -> Any:
        return plain(importlib.import_module("hcl2").loads(recipe.text("mail.tf")))

    def made(self, hcl: Any) -> dict[str, Any]:
        return {
            f"{kind}.{name}": settings
            for one in hcl["resource"]
            for kind, named in one.items()
            for name, settings in named.items()
        }

    def test_the_rule_is_that_of_the_template(self, hcl: Any) -> None:
        (rule,) = resources("mail.yaml", "AWS::Events::Rule").values()
        (local,) = hcl["locals"]
        made = self.made(hcl)["aws_cloudwatch_event_rule.logins"]
        assert made["event_pattern"] == "${jsonencode(local.logins)}"
        assert local["logins"] == rule["EventPattern"]

    def test_the_text_is_that_of_the_template(self, hcl: Any) -> None:
        ((expected),) = transformers("mail.yaml")
        (dynamic,) = self.made(hcl)["aws_cloudwatch_event_target.topic"]["dynamic"]
        (content,) = dynamic["input_transformer"]["content"]
        assert content["input_paths"] == expected["InputPathsMap"]
        assert content["input_template"] == expected["InputTemplate"]

    def test_the_queue_is_that_of_the_template(self, hcl: Any) -> None:
        (expected,) = resources("mail.yaml", "AWS::SQS::Queue").values()
        queue = self.made(hcl)["aws_sqs_queue.undelivered"]
        assert queue["message_retention_seconds"] == expected["MessageRetentionPeriod"]
        assert queue["sqs_managed_sse_enabled"] == expected["SqsManagedSseEnabled"]

    def test_the_variables_are_the_templates_parameters(self, hcl: Any) -> None:
        shown = {name: one.get("default") for v in hcl["variable"] for name, one in v.items()}
        expected = loaded("mail.yaml")["Parameters"]
        assert {name.replace("_", "") for name in shown} == {name.lower() for name in expected}
        assert shown["event_bus"] == expected["EventBus"]["Default"]
        assert shown["protocol"] == expected["Protocol"]["Default"]

    def test_what_it_refers_to_is_there(self, hcl: Any) -> None:
        text = json.dumps(self.made(hcl))
        for word in re.findall(r"\b(aws_\w+\.\w+)\.\w+", text):
            assert word in self.made(hcl)

    def test_terraform_would_not_write_it_otherwise(self) -> None:
        need(shutil.which("terraform"), "needs terraform")
        command = ["terraform", "fmt", "-check", "-diff", str(FOLDER / "mail.tf")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "")


EVENT: dict[str, Any] = {
    "time": "2015-11-11T21:29:54Z",
    "resources": ["arn:aws:ec2:us-east-1:123456789012:instance/i-abcd1111"],
    "detail": {"instance-id": "i-0123456789", "state": "RUNNING", "none": "", "odd": 'a"b\\c'},
}
PATHS = {"instance": "$.detail.instance-id", "state": "$.detail.state", "missing": "$.detail.x"}


class TestTransformer:
    """The stand-in for EventBridge's input transformer, against the table in its documentation."""

    @pytest.mark.parametrize(
        ("template", "output"),
        [
            ('"instance <instance> is in <state>"', '"instance i-0123456789 is in RUNNING"'),
            (
                '"instance \\"<instance>\\" is in <state>"',
                '"instance \\"i-0123456789\\" is in RUNNING"',
            ),
            ('{"instance": <instance>}', '{"instance": "i-0123456789"}'),
            ('{"state": [9, <state>, true]}', '{"state": [9, "RUNNING", true]}'),
            ('{"state": "<state>"}', '{"state": "RUNNING"}'),
            ('"nothing: <missing>"', '"nothing: "'),
        ],
    )
    def test_the_documented_examples(self, template: str, output: str) -> None:
        transformer = {"InputPathsMap": PATHS, "InputTemplate": template}
        assert transform(transformer, EVENT) == output

    def test_a_value_that_stands_alone_is_right_whatever_it_holds(self) -> None:
        paths = {"odd": "$.detail.odd", "none": "$.detail.none", "first": "$.resources[0]"}
        template = '{"odd": <odd>, "none": <none>, "first": <first>}'
        made = json.loads(transform({"InputPathsMap": paths, "InputTemplate": template}, EVENT))
        odd, first = EVENT["detail"]["odd"], EVENT["resources"][0]
        assert made == {"odd": odd, "none": "", "first": first}

    def test_a_quote_inside_quotes_breaks_the_message(self) -> None:
        transformer = {"InputPathsMap": {"odd": "$.detail.odd"}, "InputTemplate": '"it is <odd>"'}
        with pytest.raises(NotDeliveredError):
            transform(transformer, EVENT)

    @pytest.mark.parametrize("paths", [{"a b": "$.x"}, {"a": "x"}, {"a": "$['x']"}])
    def test_what_put_targets_refuses(self, paths: dict[str, str]) -> None:
        with pytest.raises(ValueError, match=": "):
            transform({"InputPathsMap": paths, "InputTemplate": '"x"'}, EVENT)
