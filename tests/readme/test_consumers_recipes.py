"""The recipes for those who receive the events: linted, deployed, and what arrives with them.

moto plays AWS: it deploys what it knows of a template, and matches the events that tattle sends.
What it can't do is done here: the input transformer (standins/transformer.py), API destinations and
Firehose in CloudFormation (made by their own APIs), Lambda (the code is run in the test).
"""

from __future__ import annotations

import importlib
import json
import operator
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import readme_blocks as readme
from conftest import Moto
from standins.eventbridge import EventBridge
from standins.imds import Imds
from standins.transformer import transform
from support import ROOT, applies, clean_environment, hcl, need
from tattle.event.fields import DEFAULT, FROM_INSTANCE, FROM_SESSION, FROM_SSHD
from tattle.shell import recipe

pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning")

VENV = Path(sys.executable).parent
FOLDER = ROOT / "src" / "tattle" / "recipes"
STACK = "tattle"
ACCOUNT = "123456789012"  # moto's
ARN = "arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"  # the stand-in for IMDS's
DETAIL_TYPE = "SSH connection event detected"
CREDENTIALS = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "moto",
    "AWS_SECRET_ACCESS_KEY": "moto",
}

PARAMETERS: dict[str, dict[str, str]] = {
    "iam-role.yaml": {},
    "mail.yaml": {"Endpoint": "security@example.com"},
    "chat.yaml": {"SlackWorkspace": "T0123ABCD", "SlackChannel": "C0123ABCD"},
    "webhook.yaml": {"Service": "Slack", "Url": "https://hooks.slack.com/services/x"},
    "lambda.yaml": {"WebhookUrl": "https://hooks.slack.com/services/x"},
    "logs.yaml": {},
    "dashboard.yaml": {},
    "instance-connect.yaml": {},
    "archive.yaml": {},
    "central-bus.yaml": {"Organization": "o-a1b2c3d4e5"},
    "ssm.yaml": {"TagValue": "canary", "Url": "https://example.com/tattle", "Sha256": "0" * 64},
    "silence.yaml": {"Topic": f"arn:aws:sns:us-east-1:{ACCOUNT}:watch"},
}
each_template = pytest.mark.parametrize("name", PARAMETERS)
# Not the site's choice, but a user's or that of whoever names a host: these may hold a quote.
CHOSEN_BY_OTHERS = {"$.detail.username", "$.detail.remote_host"}
# https://docs.aws.amazon.com/eventbridge/latest/ref/overiew-event-structure.html
ENVELOPE = {"version", "id", "detail-type", "source", "account", "time", "region", "resources"}
ENVELOPE |= {"detail"}
# https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/CWL_QuerySyntax.html
OF_THE_LANGUAGE = {
    "fields",
    "filter",
    "stats",
    "sort",
    "limit",
    "display",
    "by",
    "as",
    "asc",
    "desc",
}
OF_THE_LANGUAGE |= {"and", "or", "not", "like"}
# Actions that know no resources: https://docs.aws.amazon.com/service-authorization/latest/reference/
WITHOUT_RESOURCES = {"ec2:DescribeInstances", "cloudwatch:PutMetricData"}


class Login(NamedTuple):
    username: str
    remote_host: str | None


QUOTE = Login('al"ice', "2001:db8::1")
NOWHERE = Login("bob", None)
# What tattle sends of these, as username, remote_host and session.
SESSIONS = [
    ('al"ice', "2001:db8::1", "opened"),
    ('al"ice', "2001:db8::1", "closed"),
    ("bob", "", "opened"),
    ("bob", "", "closed"),
]
LOGINS = [one for one in SESSIONS if one[2] == "opened"]


def loaded(name: str) -> Any:
    """A template with `!Ref` and so on as CloudFormation's JSON has them."""
    cfn_yaml = importlib.import_module("cfnlint.decode.cfn_yaml")  # untyped
    return json.loads(json.dumps(cfn_yaml.load(str(FOLDER / name))))


def resources(name: str, kind: str) -> dict[str, Any]:
    """The properties of a template's resources of this kind, by logical name."""
    found = loaded(name)["Resources"].items()
    return {key: one.get("Properties", {}) for key, one in found if one["Type"] == kind}


def only(name: str, kind: str) -> Any:
    (found,) = resources(name, kind).values()
    return found


def walk(node: Any) -> Iterator[Any]:
    yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    for child in children:
        yield from walk(child)


def dictionaries(name: str) -> list[dict[str, Any]]:
    return [node for node in walk(loaded(name)) if isinstance(node, dict)]


def statements(name: str) -> Iterator[dict[str, Any]]:
    for node in dictionaries(name):
        if "Effect" in node:
            yield node
        if str(node.get("Fn::Sub")).startswith("{"):
            yield from json.loads(node["Fn::Sub"])["Statement"]


def transformers(name: str) -> list[tuple[dict[str, str], str]]:
    """A template's input transformers: the paths and the text, of which a mapping may hold some."""
    found = [node for node in dictionaries(name) if "InputTemplate" in node]
    bodies = [one["Body"] for one in loaded(name).get("Mappings", {}).get("Services", {}).values()]
    return [
        (one["InputPathsMap"], text) for one in found for text in bodies or [one["InputTemplate"]]
    ]


def queries(name: str) -> list[str]:
    """A template's queries of CloudWatch Logs Insights, the saved ones and a dashboard's."""
    found = [one["QueryString"] for one in dictionaries(name) if "QueryString" in one]
    for dashboard in resources(name, "AWS::CloudWatch::Dashboard").values():
        _, values = dashboard["DashboardBody"]["Fn::Sub"]
        found += values.values()
    return found


def names_in(query: str) -> set[str]:
    """What a query takes from events: no words of the language, no functions, no new names."""
    query = re.sub(r"""'[^']*'|"[^"]*\"""", "", query)
    words = {*re.findall(r"(?<![\w.])[A-Za-z][\w.-]*\b(?!\()", query)}
    return words - OF_THE_LANGUAGE - {*re.findall(r"\bas (\w+)", query)}


def fields_used(name: str) -> set[str]:
    """The fields of `detail` that a template's transformers and queries name."""
    paths = [path[2:] for paths, _ in transformers(name) for path in paths.values()]
    names = [*paths, *(name for query in queries(name) for name in names_in(query))]
    for one in names:
        assert re.split(r"[.\[]", one)[0] in ENVELOPE
    found = {one.split(".")[1] for one in names if one.startswith("detail.")}
    return found - {"person"} if name == "instance-connect.yaml" else found  # its own function's


class TestTemplates:
    def test_cfn_lint_has_nothing_to_say(self) -> None:
        command = [f"{VENV}/cfn-lint", "--", *(f"{FOLDER}/{name}" for name in PARAMETERS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=170)
        assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr

    def test_all_of_them_are_looked_at(self) -> None:
        texts = {name: recipe.text(name) for name, _ in recipe.recipes()}
        assert {*PARAMETERS} == {
            name for name, text in texts.items() if "AWSTemplateFormatVersion" in text
        }

    @each_template
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

    @each_template
    def test_it_says_at_its_top_which_fields_it_needs(self, name: str) -> None:
        comment, _, _ = recipe.text(name).partition("AWSTemplateFormatVersion")
        named = re.findall(r"(?m)^#   fields = (.*)$", comment)
        assert fields_used(name) | {*DEFAULT} == {*(named[0].split() if named else DEFAULT)}
        assert fields_used(name) <= {*FROM_SESSION, *FROM_SSHD, *FROM_INSTANCE}

    @each_template
    def test_it_works_in_every_partition(self, name: str) -> None:
        _, _, template = recipe.text(name).partition("\nAWSTemplateFormatVersion")
        assert not re.search(r"\barn:aws", template)

    @each_template
    def test_what_it_allows_is_least(self, name: str) -> None:
        for one in statements(name):
            actions = one["Action"] if isinstance(one["Action"], list) else [one["Action"]]
            if one["Effect"] == "Deny":
                continue
            assert not any("*" in action for action in actions)
            if one.get("Resource") == "*":
                assert {*actions} <= WITHOUT_RESOURCES
            if one.get("Principal") == "*":
                conditions = {*one["Condition"]["StringEquals"]}
                assert conditions == {"aws:PrincipalOrgID", "events:source"}

    @pytest.mark.parametrize(
        "name", [one for one in PARAMETERS if "Undelivered:" in recipe.text(one)]
    )
    def test_what_is_not_delivered_is_kept(self, name: str) -> None:
        ((rule, properties),) = resources(name, "AWS::Events::Rule").items()
        (queue,) = resources(name, "AWS::SQS::Queue")
        policy = only(name, "AWS::SQS::QueuePolicy")
        for target in properties["Targets"]:
            assert target["DeadLetterConfig"]["Arn"] == {"Fn::GetAtt": [queue, "Arn"]}
        assert policy["Queues"] == [{"Ref": queue}]
        (statement,) = policy["PolicyDocument"]["Statement"]
        assert statement["Principal"] == {"Service": "events.amazonaws.com"}
        source = {"ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": [rule, "Arn"]}}}
        assert statement["Condition"] == source

    @pytest.mark.parametrize("name", ["mail.yaml", "chat.yaml"])
    def test_its_topic_takes_what_the_rule_sends(self, name: str) -> None:
        """Without that EventBridge drops it: a topic's policy is the only permission there."""
        (topic,) = resources(name, "AWS::SNS::Topic")
        (target,) = only(name, "AWS::Events::Rule")["Targets"]
        policy = only(name, "AWS::SNS::TopicPolicy")
        assert target["Arn"] == {"Ref": topic}
        assert policy["Topics"] == [{"Ref": topic}]
        assert {
            "Effect": "Allow",
            "Principal": {"Service": "events.amazonaws.com"},
            "Action": "sns:Publish",
            "Resource": {"Ref": topic},
        } in policy["PolicyDocument"]["Statement"]

    @each_template
    def test_no_value_of_a_users_stands_inside_quotes(self, name: str) -> None:
        """EventBridge doesn't escape it there: a quote in it would break the message."""
        for paths, text in transformers(name):
            outside = re.sub(r'"[^"]*"', '""', text)
            for key, path in paths.items():
                if path in CHOSEN_BY_OTHERS:
                    assert text.count(f"<{key}>") == outside.count(f"<{key}>") > 0

    def test_the_role_allows_what_the_policy_does(self) -> None:
        (policy,) = only("iam-role.yaml", "AWS::IAM::Role")["Policies"]
        reporting, looking = policy["PolicyDocument"]["Statement"]
        condition, looking, nothing = looking["Fn::If"]
        assert loaded("iam-role.yaml")["Conditions"] == {
            condition: {"Fn::Not": [{"Fn::Equals": [{"Ref": "EventBus"}, "default"]}]}
        }
        assert nothing == {"Ref": "AWS::NoValue"}
        values = {"Partition": "aws", "Region": "us-east-1", "AccountId": ACCOUNT}
        for statement in (reporting, looking):
            arn = statement["Resource"].pop("Fn::Sub").replace("${EventBus}", "x")
            statement["Resource"] = re.sub(r"\$\{AWS::(\w+)\}", lambda found: values[found[1]], arn)
        filled = recipe.iam_policy("aws", "us-east-1", ACCOUNT, ["x"])
        assert [reporting, looking] == json.loads(filled)["Statement"]


def for_moto(name: str) -> dict[str, Any]:
    """The template without what moto's CloudFormation does not know. What refers to that, a rule's
    target, has another ARN in its place."""
    unknown = {"Connection", "Destination", "Stream"}

    def filled(node: Any) -> Any:
        if isinstance(node, dict) and node.get("Fn::GetAtt", [""])[0] in unknown:
            return f"arn:aws:sqs:us-east-1:{ACCOUNT}:nothing"
        if isinstance(node, dict):
            return {key: filled(child) for key, child in node.items() if key not in unknown}
        return [filled(child) for child in node] if isinstance(node, list) else node

    return dict(filled(loaded(name)))


def deploy(moto: Moto, name: str, stack: str = STACK, **parameters: str) -> None:
    cloudformation = moto.client("cloudformation")
    given = {**PARAMETERS[name], **parameters}
    cloudformation.create_stack(
        StackName=stack,
        TemplateBody=json.dumps(for_moto(name)),
        Parameters=[{"ParameterKey": key, "ParameterValue": one} for key, one in given.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    (made,) = cloudformation.describe_stacks(StackName=stack)["Stacks"]
    assert made["StackStatus"] == "CREATE_COMPLETE"
    for rule in moto.events.list_rules()["Rules"]:
        if "ScheduleExpression" in rule:  # to moto, one without a pattern matches every event
            moto.events.remove_targets(Rule=rule["Name"], Ids=["watch"])


def listen(moto: Moto, rule: str, target: str) -> str:
    """Put a queue in the place of a rule's target; its URL."""
    url = moto.sqs.create_queue(QueueName="in-place-of-the-target")["QueueUrl"]
    asked = moto.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    queue = {"Id": target, "Arn": asked["Attributes"]["QueueArn"]}
    moto.events.put_targets(Rule=rule, Targets=[queue])
    return str(url)


def matched(moto: Moto, url: str) -> list[dict[str, Any]]:
    """The events that the rule let through."""
    found: list[dict[str, Any]] = []
    asking = {"QueueUrl": url, "MaxNumberOfMessages": 10}
    while messages := moto.sqs.receive_message(**asking).get("Messages"):
        for message in messages:
            found.append(json.loads(message["Body"]))
            moto.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return found


def logged(moto: Moto, group: str) -> list[Any]:
    """The events in a log group, in the order in which they were written."""
    found = moto.client("logs").filter_log_events(logGroupName=group)["events"]
    ordered = sorted(found, key=lambda one: (one["timestamp"], one["ingestionTime"]))
    return [json.loads(one["message"]) for one in ordered]


def put(moto: Moto, *entries: Mapping[str, Any]) -> None:
    answer = moto.events.put_events(Entries=entries)
    assert answer["FailedEntryCount"] == 0


def entry(**detail: str) -> dict[str, Any]:
    """An event with this in its detail."""
    plain = {"username": "ubuntu", "remote_host": "1.2.3.4", "session": "opened"}
    return {
        "Source": "com.unbounce.tattle",
        "DetailType": DETAIL_TYPE,
        "Resources": [ARN],
        "Detail": json.dumps({**plain, **detail}),
    }


@pytest.fixture(scope="module")
def sent(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What tattle sends: SESSIONS, and what `tattle check --send` does."""
    with Imds() as imds, EventBridge() as eventbridge:
        environment = {
            **clean_environment(tmp_path_factory.mktemp("home")),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url,
            "AWS_ENDPOINT_URL_EVENTBRIDGE": eventbridge.url,
        }
        for login in (QUOTE, NOWHERE):
            for kind in ("open_session", "close_session"):
                session = {"PAM_TYPE": kind, "PAM_USER": login.username}
                session |= {"PAM_RHOST": login.remote_host} if login.remote_host else {}
                subprocess.run([artifact], env={**environment, **session}, check=True)
        subprocess.run([artifact, "check", "--send"], env=environment, stdout=subprocess.DEVNULL)
        return [dict(one.raw) for one in eventbridge.entries()]


def details(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    return [tuple(event["detail"].values()) for event in events]


class TestDeployment:
    def test_readme_sets_up_aws_by_the_recipes_own_commands(
        self, moto_server: Moto, tmp_path: Path
    ) -> None:
        """With the AWS CLI that the tests have: one stack without a capability, one with."""
        cloudformation = moto_server.client("cloudformation")
        cloudformation.list_stacks()  # loads much of moto: longer than the CLI may wait
        aws = f'aws() {{ "{VENV}/python" -m awscli --endpoint-url "$MOTO" "$@"; }}\n'
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", aws + readme.text("aws")],
            cwd=ROOT,
            env={**clean_environment(tmp_path), "MOTO": moto_server.url, **CREDENTIALS},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        stacks = cloudformation.describe_stacks()["Stacks"]
        assert {(one["StackName"], one["StackStatus"]) for one in stacks} == {
            ("tattle-role", "CREATE_COMPLETE"),
            ("tattle-mail", "CREATE_COMPLETE"),
        }
        (subscription,) = moto_server.client("sns").list_subscriptions()["Subscriptions"]
        assert subscription["Protocol"] == "email"
        assert subscription["Endpoint"] == "security@example.com"
        for command in readme.commands(readme.text("aws")):
            typed = re.sub(r"[\\\s]+", " ", command.replace("src/tattle/recipes/", ""))
            (name,) = re.findall(r"--template-file (\S+)", typed)
            assert f"{typed} " in re.sub(r"[#\\\s]+", " ", recipe.text(name))


Event = Mapping[str, Any]


def as_it_is(event: Event) -> Any:
    return event


def mail(event: Event) -> Any:
    detail = event["detail"]
    who = {"SSH login": detail["username"], "from": detail["remote_host"]}
    return {**who, "on": ARN, "at": event["time"]}


def chat(event: Event) -> Any:
    """https://docs.aws.amazon.com/chatbot/latest/adminguide/custom-notifs.html"""
    detail = event["detail"]
    state, at = detail["session"], event["time"]
    return {
        "version": "1.0",
        "source": "custom",
        "id": event["id"],
        "content": {
            "textType": "client-markdown",
            "title": detail["username"],
            "description": f"SSH session {state} on {ARN} at {at}",
            "keywords": [detail["remote_host"]],
        },
        "metadata": {
            "threadId": f"ssh-session-{detail.get('session_id', '')}",
            "summary": f"SSH session on {ARN}",
            "eventType": f"ssh-session-{state}",
            "relatedResources": [ARN],
            "additionalContext": {
                "username": detail["username"],
                "remote_host": detail["remote_host"],
            },
        },
    }


def slack(event: Event) -> Any:
    """https://api.slack.com/reference/messaging/attachments"""
    user, host = event["detail"]["username"], event["detail"]["remote_host"]
    fields = [("User", user), ("From", host), ("At", event["time"])]
    shown = [{"title": title, "value": value, "short": True} for title, value in fields]
    attachment = {"fallback": user, "mrkdwn_in": [], "fields": shown}
    return {"text": f"SSH login on {ARN}", "attachments": [attachment]}


def pagerduty(event: Event) -> Any:
    """https://developer.pagerduty.com/docs/send-alert-event"""
    detail = event["detail"]
    return {
        "event_action": "trigger",
        "dedup_key": detail.get("event_id", ""),
        "payload": {
            "summary": f"SSH login on {ARN}",
            "source": ARN,
            "severity": "info",
            "timestamp": event["time"],
            "custom_details": {key: detail[key] for key in ("username", "remote_host")},
        },
    }


def datadog(event: Event) -> Any:
    """https://docs.datadoghq.com/api/latest/logs/#send-logs"""
    return {
        "ddsource": "tattle",
        "service": "sshd",
        "hostname": ARN,
        "message": f"SSH login on {ARN}",
        "date": event["time"],
        "evt": {"name": "ssh-login", "id": event["id"]},
        "usr": {"name": event["detail"]["username"]},
        "network": {"client": {"ip": event["detail"]["remote_host"]}},
    }


class Arrival(NamedTuple):
    name: str
    parameters: dict[str, str]
    sessions: list[tuple[str, str, str]]
    """What the rule lets through."""
    message: Callable[[Event], Any]
    """What the target gets of it."""


ARRIVALS = {
    "people by mail": Arrival("mail.yaml", {}, LOGINS, mail),
    "an HTTPS endpoint": Arrival(
        "mail.yaml", {"Protocol": "https", "Endpoint": "https://x"}, LOGINS, as_it_is
    ),
    "a chat": Arrival("chat.yaml", {}, SESSIONS, chat),
    "Slack": Arrival("webhook.yaml", {"Service": "Slack"}, LOGINS, slack),
    "PagerDuty": Arrival("webhook.yaml", {"Service": "PagerDuty", "Key": "k"}, LOGINS, pagerduty),
    "Datadog": Arrival("webhook.yaml", {"Service": "Datadog", "Key": "k"}, LOGINS, datadog),
    "a function": Arrival("lambda.yaml", {}, LOGINS, as_it_is),
    "Firehose": Arrival("archive.yaml", {}, SESSIONS, as_it_is),
}


class TestArrivals:
    @pytest.mark.parametrize("case", ARRIVALS.values(), ids=ARRIVALS)
    def test_what_the_target_gets(
        self, moto_server: Moto, sent: list[dict[str, Any]], case: Arrival
    ) -> None:
        """`pytest -s` shows it."""
        deploy(moto_server, case.name, **case.parameters)
        (rule,) = (one["Name"] for one in moto_server.events.list_rules()["Rules"])
        (target,) = moto_server.events.list_targets_by_rule(Rule=rule)["Targets"]
        url = listen(moto_server, rule, target["Id"])
        put(moto_server, *sent)
        events = matched(moto_server, url)
        assert details(events) == case.sessions
        for event in events:
            assert event["resources"] == [ARN]
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["time"])
            transformer = target.get("InputTransformer")
            arrived = json.loads(transform(transformer, event)) if transformer else event
            print(f"\n{case.name}: {json.dumps(arrived)}")
            assert arrived == case.message(event)

    def test_a_logout_lands_under_its_login_in_the_chat(self) -> None:
        for state in ("opened", "closed"):
            (arrived,) = arrivals("chat.yaml", session=state, session_id="32b61a4c")
            assert arrived["metadata"]["threadId"] == "ssh-session-32b61a4c"

    def test_copies_of_an_event_are_one_incident_in_pagerduty(self) -> None:
        slack, first, datadog = arrivals("webhook.yaml", "1", event_id="8d3a2bfb")
        _, copy, _ = arrivals("webhook.yaml", "2", event_id="8d3a2bfb")
        assert first["dedup_key"] == "8d3a2bfb"
        assert copy == first
        assert "8d3a2bfb" not in json.dumps([slack, datadog])


def arrivals(name: str, event: str = "1", **detail: str) -> list[Any]:
    """What each of a template's transformers makes of an event with this id and detail."""
    made = {"id": event, "time": "now", "resources": [ARN]}
    made["detail"] = json.loads(entry(**detail)["Detail"])
    return [
        json.loads(transform({"InputPathsMap": paths, "InputTemplate": text}, made))
        for paths, text in transformers(name)
    ]


class TestWebhook:
    def test_pagerdutys_key_goes_into_the_body(self) -> None:
        connection = only("webhook.yaml", "AWS::Events::Connection")
        _, given, otherwise = connection["AuthParameters"]["InvocationHttpParameters"]["Fn::If"]
        assert otherwise == {"Ref": "AWS::NoValue"}
        (parameter,) = given["BodyParameters"]
        assert parameter == {"Key": "routing_key", "Value": {"Ref": "Key"}, "IsValueSecret": True}

    def test_each_service_has_all_that_the_template_looks_up(self) -> None:
        known = loaded("webhook.yaml")["Mappings"]["Services"]
        assert loaded("webhook.yaml")["Parameters"]["Service"]["AllowedValues"] == [*known]
        for service in known.values():
            assert {*service} == {"Header", "RequestsPerSecond", "Body"}


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """A server in Slack's place: its URL, and the bodies that it gets. There is no /gone."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(404 if self.path == "/gone" else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()


def function(
    monkeypatch: pytest.MonkeyPatch, moto: Moto, name: str, **variables: str
) -> types.ModuleType:
    """The code of a template's Lambda function, as a module, with moto for AWS."""
    properties = only(name, "AWS::Lambda::Function")
    assert {*properties.get("Environment", {"Variables": {}})["Variables"]} == {*variables}
    assert properties["Handler"] == "index.handler"
    for key, value in {"AWS_ENDPOINT_URL": moto.url, **CREDENTIALS, **variables}.items():
        monkeypatch.setenv(key, value)
    module = types.ModuleType("index")
    exec(compile(properties["Code"]["ZipFile"], f"{name}: index.py", "exec"), vars(module))
    return module


class TestLambda:
    def test_slack_gets_a_sentence_for_a_login(
        self,
        moto_server: Moto,
        webhook: tuple[str, list[Any]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What Slack refuses fails, so that Lambda tries again and keeps the event."""
        url, bodies = webhook
        secrets = moto_server.client("secretsmanager")
        secret = secrets.create_secret(Name="webhook", SecretString=url)
        index = function(monkeypatch, moto_server, "lambda.yaml", WEBHOOK=secret["ARN"])
        at = "2026-01-02T03:04:05Z"
        sentences = {
            ('al"ice', "2001:db8::1"): 'al"ice logged in to i-abc123abc123 from 2001:db8::1',
            ("bob", ""): "bob logged in to i-abc123abc123 from an unknown host",
            ("<!channel>&", "x"): "&lt;!channel&gt;&amp; logged in to i-abc123abc123 from x",
        }
        for user, host in sentences:
            detail = {"username": user, "remote_host": host, "session": "opened"}
            event = {"detail": detail, "resources": [ARN], "time": at}
            index.handler(event, None)
        assert [body["text"] for body in bodies] == [
            f"{one} at {at}." for one in sentences.values()
        ]

        secrets.put_secret_value(SecretId="webhook", SecretString=f"{url}/gone")
        with pytest.raises(OSError, match="HTTP Error 404"):
            index.handler(event, None)


class TestLogs:
    def test_every_event_is_logged_as_it_is(
        self, moto_server: Moto, sent: list[dict[str, Any]]
    ) -> None:
        deploy(moto_server, "logs.yaml")
        put(moto_server, *sent)
        events = logged(moto_server, f"/aws/events/{STACK}")
        assert details(events) == SESSIONS
        assert all(event["resources"] == [ARN] for event in events)

        (policy,) = moto_server.client("logs").describe_resource_policies()["resourcePolicies"]
        (statement,) = json.loads(policy["policyDocument"])["Statement"]
        assert "events.amazonaws.com" in statement["Principal"]["Service"]
        assert {*statement["Action"]} == {"logs:CreateLogStream", "logs:PutLogEvents"}
        group = f"arn:aws:logs:us-east-1:{ACCOUNT}:log-group:/aws/events/{STACK}"
        assert statement["Resource"] == group  # CloudFormation's own ends with :*, its streams


class TestDashboard:
    def body(self, moto: Moto) -> Any:
        """The dashboard, beside logs.yaml and silence.yaml as their comments deploy them."""
        for stack in ("logs", "silence", "dashboard"):
            deploy(moto, f"{stack}.yaml", f"tattle-{stack}")
        answer = moto.client("cloudwatch").get_dashboard(DashboardName="tattle-dashboard")
        return json.loads(answer["DashboardBody"])

    def test_its_widgets_look_at_what_the_others_write(self, moto_server: Moto) -> None:
        """https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/CloudWatch-Dashboard-Body-Structure.html"""
        widgets = self.body(moto_server)["widgets"]
        groups = moto_server.client("logs").describe_log_groups()["logGroups"]
        assert all(one["properties"]["region"] == "us-east-1" for one in widgets)
        log = [one["properties"]["query"] for one in widgets if one["type"] == "log"]
        assert len(log) == len(queries("dashboard.yaml")) == len(widgets) - 1
        for query in log:
            (source,) = re.findall(r"^SOURCE '([^']*)' \| ", query)
            assert source in [one["logGroupName"] for one in groups]
            assert "\n" not in query
            assert "$" not in query
        (metrics,) = (one["properties"]["metrics"] for one in widgets if one["type"] == "metric")
        alarm = only("silence.yaml", "AWS::CloudWatch::Alarm")
        (dimension,) = alarm["Dimensions"]
        assert metrics == [
            [alarm["Namespace"], alarm["MetricName"], dimension["Name"], "tattle-silence"]
        ]

    def test_no_widget_covers_another(self, moto_server: Moto) -> None:
        taken: set[tuple[int, int]] = set()
        for one in self.body(moto_server)["widgets"]:
            columns = range(one["x"], one["x"] + one["width"])
            cells = {(x, y) for x in columns for y in range(one["y"], one["y"] + one["height"])}
            assert not taken & cells
            assert max(columns) < 24
            taken |= cells


KEY_SENT: dict[str, Any] = {
    "version": "0",
    "id": "6e2b0f0e-2c51-4d11-8f5c-5a1f4c5c8d3a",
    "detail-type": "AWS API Call via CloudTrail",
    "source": "aws.ec2-instance-connect",
    "account": ACCOUNT,
    "time": "2024-08-01T13:24:47Z",
    "region": "us-east-1",
    "resources": [],
    "detail": {
        "eventVersion": "1.08",
        "userIdentity": {
            "type": "IAMUser",
            "principalId": "AIDAHG2QGAX7XGTRYBZ5",
            "arn": "arn:aws:iam::572910899909:user/christophe",
            "accountId": "572910899909",
            "accessKeyId": "AKIAGM9ZC9KUL0AYEVUM",
            "userName": "christophe",
        },
        "eventTime": "2024-08-01T13:24:47Z",
        "eventSource": "ec2-instance-connect.amazonaws.com",
        "eventName": "SendSSHPublicKey",
        "awsRegion": "us-east-1",
        "sourceIPAddress": "246.227.146.251",
        "requestParameters": {
            "instanceId": "i-abc123abc123",
            "instanceOSUser": "ec2-user",
            "sSHPublicKey": "ssh-ed25519 "
            "AAAAC3NzaC1lZDI1NTE5AAAAIOtAlK45MAEWZ7MUY2QEmi3M6W+peGL3VCrc0qH54xRu",
        },
        "responseElements": {"success": True},
        "eventType": "AwsApiCall",
        "managementEvent": True,
        "readOnly": False,
    },
}
"""As CloudTrail recorded it for DataDog/stratus-red-team,
docs/attack-techniques/AWS/aws.lateral-movement.ec2-instance-connect.md, with an instance, an
account and a region of these tests' own, in EventBridge's envelope:
https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-service-event-cloudtrail.html"""


class TestInstanceConnect:
    def logged(
        self,
        moto: Moto,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        key: str = KEY_SENT["detail"]["requestParameters"]["sSHPublicKey"],
    ) -> Any:
        """The line that the function logs when that key is sent."""
        event = json.loads(json.dumps(KEY_SENT))
        event["detail"]["requestParameters"]["sSHPublicKey"] = key
        place = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:x"
        context = types.SimpleNamespace(invoked_function_arn=place)
        function(monkeypatch, moto, "instance-connect.yaml").handler(event, context)
        (line,) = capsys.readouterr().out.splitlines()
        return json.loads(line)

    def test_the_line_names_the_person_beside_what_tattle_says(
        self,
        moto_server: Moto,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert self.logged(moto_server, monkeypatch, capsys) == {
            "time": "2024-08-01T13:24:47Z",
            "resources": [ARN.replace("012345678901", ACCOUNT)],
            "detail": {
                "username": "ec2-user",
                "remote_host": "246.227.146.251",
                "session": "key sent",
                "key_fingerprint": "SHA256:xq6092IJhV+0W2wifL9mSmJHQoMb2h2KFNrpk4YEAW8",
                "person": "arn:aws:iam::572910899909:user/christophe",
            },
        }

    @pytest.mark.parametrize("type_", ["ed25519", "ecdsa", "rsa"])
    def test_the_fingerprint_is_ssh_keygens(
        self,
        moto_server: Moto,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        type_: str,
    ) -> None:
        """With a comment and a line feed, as the console sends it, and without."""
        need(shutil.which("ssh-keygen"), "needs ssh-keygen")
        file = tmp_path / "key"
        keygen = ["ssh-keygen", "-q", "-t", type_, "-N", "", "-C", "a comment", "-f", str(file)]
        subprocess.run(keygen, check=True)
        listed = ["ssh-keygen", "-lf", str(file)]
        printed = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
        key = file.with_suffix(".pub").read_text()
        for sent in (key, " ".join(key.split()[:2])):
            line = self.logged(moto_server, monkeypatch, capsys, sent)
            assert line["detail"]["key_fingerprint"] == printed.split()[1]

    def test_only_keys_that_were_sent_for_ssh_are_logged(self, moto_server: Moto) -> None:
        deploy(moto_server, "instance-connect.yaml")
        (rule,) = (one["Name"] for one in moto_server.events.list_rules()["Rules"])
        url = listen(moto_server, rule, "function")
        for change in (
            {},
            {"errorCode": "AccessDenied", "requestParameters": None},
            {"eventName": "SendSerialConsoleSSHPublicKey"},
        ):
            detail = {**KEY_SENT["detail"], **change}
            put(
                moto_server,
                {
                    "Source": KEY_SENT["source"],
                    "DetailType": KEY_SENT["detail-type"],
                    "Detail": json.dumps(detail),
                },
            )
        (event,) = matched(moto_server, url)
        assert event["detail"] == KEY_SENT["detail"]

    def test_its_query_looks_at_both_groups(self) -> None:
        query = only("instance-connect.yaml", "AWS::Logs::QueryDefinition")
        assert query["LogGroupNames"] == [{"Ref": "LogGroup"}, {"Ref": "Keys"}]
        written = only("instance-connect.yaml", "AWS::Lambda::Function")["LoggingConfig"]
        assert written == {"LogGroup": {"Ref": "Keys"}}


class TestArchive:
    def test_each_event_is_a_line(self) -> None:
        """EventBridge sends no line feed. moto's Firehose does not process."""
        stream = only("archive.yaml", "AWS::KinesisFirehose::DeliveryStream")
        processing = stream["ExtendedS3DestinationConfiguration"]["ProcessingConfiguration"]
        assert [one["Type"] for one in processing["Processors"]] == ["AppendDelimiterToRecord"]

    def test_the_bucket_is_closed_and_stays(self) -> None:
        bucket = only("archive.yaml", "AWS::S3::Bucket")
        assert [*bucket["PublicAccessBlockConfiguration"].values()] == [True] * 4
        assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
        assert loaded("archive.yaml")["Resources"]["Bucket"]["DeletionPolicy"] == "Retain"


class TestCentralBus:
    def test_other_recipes_hang_on_to_it(
        self, moto_server: Moto, sent: list[dict[str, Any]]
    ) -> None:
        deploy(moto_server, "central-bus.yaml")
        buses = moto_server.events.list_event_buses()["EventBuses"]
        (bus,) = (one for one in buses if one["Name"] != "default")
        deploy(moto_server, "logs.yaml", "logs", EventBus=bus["Name"])
        put(moto_server, *({**one, "EventBusName": bus["Arn"]} for one in sent))
        put(moto_server, entry(username="on-another-bus"))
        assert details(logged(moto_server, "/aws/events/logs")) == SESSIONS

    def test_members_of_the_organization_may_send_and_nobody_else(self) -> None:
        """moto's CloudFormation does not know this resource."""
        statement = only("central-bus.yaml", "AWS::Events::EventBusPolicy")["Statement"]
        assert (statement["Effect"], statement["Action"]) == ("Allow", "events:PutEvents")
        assert statement["Resource"] == {"Fn::GetAtt": ["Bus", "Arn"]}
        expected = {
            "aws:PrincipalOrgID": {"Ref": "Organization"},
            "events:source": {"Ref": "Source"},
        }
        assert statement["Condition"] == {"StringEquals": expected}


# https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutMetricAlarm.html
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
    "LessThanThreshold": operator.lt,
    "LessThanOrEqualToThreshold": operator.le,
}


class TestSilence:
    GROUP = f"/aws/events/{STACK}"
    HOURS = 3

    @pytest.fixture
    def watch(
        self, moto_server: Moto, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., types.ModuleType]:
        """Deploy the template; its function. A queue gets the messages."""
        topic = moto_server.client("sns").create_topic(Name="watch")["TopicArn"]
        self.url = moto_server.sqs.create_queue(QueueName="messages")["QueueUrl"]
        queue = f"arn:aws:sqs:us-east-1:{ACCOUNT}:messages"
        moto_server.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue)

        def made(tag: str = "") -> types.ModuleType:
            deploy(moto_server, "silence.yaml", TagKey=tag)
            (told,) = moto_server.client("ssm").describe_parameters()["Parameters"]
            variables = {"SIGNS_OF_LIFE": self.GROUP, "TAG_KEY": tag, "HOURS": str(self.HOURS)}
            variables |= {"STACK": STACK, "TOLD": told["Name"], "TOPIC": topic}
            return function(monkeypatch, moto_server, "silence.yaml", **variables)

        return made

    def test_the_silent_are_named_and_counted(
        self,
        moto_server: Moto,
        sent: list[dict[str, Any]],
        watch: Callable[..., types.ModuleType],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Not those that send `tattle check`, that have just started, or are stopped. A login is
        no heartbeat. Each is told once, and again when others are silent."""
        index = watch()
        silent, alive = self.launch(moto_server, Name="web-1"), self.launch(moto_server)
        stopped = self.launch(moto_server)
        moto_server.client("ec2").stop_instances(InstanceIds=[stopped])
        self.send_from(silent, moto_server, sent)
        (event,) = logged(moto_server, self.GROUP)
        assert event["detail-type"] == "tattle check"
        assert index.handler({}, None) == []
        assert (self.counted(moto_server), self.messages(moto_server)) == (0, [])

        time.sleep(1.1)  # launch times are in whole seconds
        now = time.time()
        self.send_from(alive, moto_server, sent)
        self.later(monkeypatch, now)
        for _ in range(2):
            assert index.handler({}, None) == [f"{silent} web-1"]
        assert self.counted(moto_server) == 1
        (message,) = self.messages(moto_server)
        assert message["Subject"] == "tattle: 1 silent instances"
        assert message["Message"] == f"No heartbeat of tattle's for 3 hours:\n{silent} web-1\n"

        self.send_from(silent, moto_server, sent)
        self.later(monkeypatch, time.time() - self.HOURS * 3600)
        assert index.handler({}, None) == []
        (message,) = self.messages(moto_server)
        assert message["Message"] == "No heartbeat of tattle's for 3 hours:\nnone\n"

    def test_with_a_tag_only_those_that_have_it_are_watched(
        self,
        moto_server: Moto,
        watch: Callable[..., types.ModuleType],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        index = watch(tag="tattle")
        tagged = self.launch(moto_server, tattle="")
        self.launch(moto_server, other="tattle")
        self.later(monkeypatch, time.time() + 2)
        assert index.handler({}, None) == [tagged]

    def test_the_alarm_goes_off_for_one_and_where_nobody_counts(self) -> None:
        alarm = only("silence.yaml", "AWS::CloudWatch::Alarm")
        goes_off = COMPARISONS[alarm["ComparisonOperator"]]
        assert [goes_off(count, alarm["Threshold"]) for count in (0, 1, 300)] == [False, True, True]
        assert alarm["TreatMissingData"] == "breaching"
        assert alarm["AlarmActions"] == alarm["OKActions"] == [{"Ref": "Topic"}]

    def test_mails_topic_takes_the_alarm(self) -> None:
        """Which CloudWatch, unlike a role, needs to be allowed by the topic."""
        (statement,) = (
            one
            for one in statements("mail.yaml")
            if one["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
        )
        assert statement["Action"] == "sns:Publish"
        assert loaded("mail.yaml")["Outputs"]["Topic"]["Value"] == {"Ref": "Topic"}

    def later(self, monkeypatch: pytest.MonkeyPatch, since: float) -> None:
        """Let the function look at what there was since then."""
        now = since + self.HOURS * 3600
        monkeypatch.setattr(time, "time", lambda: now)

    def messages(self, moto: Moto) -> list[Any]:
        return matched(moto, self.url)

    def send_from(self, instance: str, moto: Moto, sent: list[dict[str, Any]]) -> None:
        own = ARN.replace("i-abc123abc123", instance)
        put(moto, *({**one, "Resources": [own]} for one in sent))

    def launch(self, moto: Moto, **tags: str) -> str:
        tagged = [{"Key": key, "Value": value} for key, value in tags.items()]
        made = moto.client("ec2").run_instances(
            ImageId="ami-12c6146b",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": tagged}] if tags else [],
        )
        return str(made["Instances"][0]["InstanceId"])

    def counted(self, moto: Moto) -> float:
        """The value of the metric that the alarm looks at."""
        alarm = only("silence.yaml", "AWS::CloudWatch::Alarm")
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


def patterns() -> dict[str, tuple[str, list[Login], list[Login]]]:
    """README's and the recipes': the pattern, logins that it lets through, and others."""
    (cidr,) = (one for one in readme.code(readme.prose()) if one.startswith('{"cidr"'))
    network = {"detail": {"session": ["opened"], "remote_host": [json.loads(cidr)]}}
    inside, outside = Login("root", "10.1.2.3"), Login("root", "1.2.3.4")
    named = [Login("root", None), Login("root", "2001:db8::1"), Login("root", "a.example.com")]
    others = [QUOTE, NOWHERE, Login("ubuntu", "1.2.3.4"), Login("x", "100.0.0.1"), *named]
    muted = {
        "mute-user.json": [Login("deploy", "1.2.3.4"), Login("ansible", None)],
        "mute-network.json": [inside, Login("bob", "192.168.0.1")],
        "mute-loop.json": [Login("deploy", "10.1.2.3")],
    }
    but_not = {"mute-loop.json": [Login("deploy", "1.2.3.4"), Login("alice", "10.1.2.3")]}
    return {
        "README's": (
            readme.text("pattern"),
            [outside, *named],
            [inside, Login("alice", "1.2.3.4"), Login("root", "10.example.com")],
        ),
        "README's network": (json.dumps(network), [inside], [outside, *named]),
        **{
            name: (recipe.text(name), others + but_not.get(name, []), left_out)
            for name, left_out in muted.items()
        },
    }


class TestPatterns:
    @pytest.mark.parametrize("case", patterns().values(), ids=patterns())
    def test_it_lets_those_through_and_nobody_else(
        self, moto_server: Moto, case: tuple[str, list[Login], list[Login]]
    ) -> None:
        pattern, through, left_out = case
        moto_server.events.put_rule(Name="pattern", EventPattern=pattern)
        url = listen(moto_server, "pattern", "queue")
        for login in (*through, *left_out):
            who = {"username": login.username, "remote_host": login.remote_host or ""}
            put(moto_server, entry(**who), entry(**who, session="closed"))
        found = details(matched(moto_server, url))
        assert found == [(login.username, login.remote_host or "", "opened") for login in through]

    def test_they_are_all(self) -> None:
        muting = {name for name, _ in recipe.recipes() if name.startswith("mute-")}
        assert muting == {name for name in patterns() if name.startswith("mute-")}

    @pytest.mark.parametrize("case", patterns().values(), ids=patterns())
    def test_eventbridge_knows_the_operators(self, case: tuple[str, object, object]) -> None:
        """https://github.com/aws/event-ruler, JsonRuleCompiler: moto would take others, too."""
        known = {"prefix", "suffix", "equals-ignore-case", "wildcard"}
        for node in walk(json.loads(case[0])):
            if isinstance(node, dict) and isinstance(node.get("anything-but"), dict):
                assert {*node["anything-but"]} <= known


class TestTerraform:
    """Parsed, not applied: Terraform's provider for AWS does not come from PyPI."""

    def test_what_it_refers_to_is_there(self) -> None:
        tf = hcl(recipe.text("tattle.tf"))
        there = {f"var.{name}" for one in tf["variable"] for name in one}
        there |= {f"{kind}.{name}" for one in tf["resource"] for kind in one for name in one[kind]}
        assert "aws_cloudformation_stack.tattle" in there
        found = re.findall(r"\b(var\.\w+|aws_\w+\.\w+)", json.dumps([tf["resource"], tf["output"]]))
        assert {*found} == there

    def test_each_template_is_a_stack_with_its_parameters(self) -> None:
        (made,) = hcl(recipe.text("tattle.tf"))["resource"]
        stack = made["aws_cloudformation_stack"]["tattle"]
        assert stack["for_each"] == "${var.stacks}"
        assert stack["template_body"] == '${file("${path.module}/${each.key}.yaml")}'
        assert stack["parameters"] == "${each.value}"
        assert stack["capabilities"] == ["CAPABILITY_IAM"]

    def test_its_example_is_every_template_with_parameters_that_exist(self) -> None:
        (example,) = re.findall(
            r"(?m)^#   (stacks = \{\n(?:#     .*\n)+)#   \}", recipe.text("tattle.tf")
        )
        stacks = hcl(example.replace("#", "") + "}\n")["stacks"]
        assert {f"{name}.yaml" for name in stacks} == {*PARAMETERS}
        for name, given in stacks.items():
            known = loaded(f"{name}.yaml").get("Parameters", {})
            needed = {key for key, one in known.items() if "Default" not in one}
            assert needed <= {*given} <= {*known}, name

    def test_its_outputs_are_the_templates(self) -> None:
        outputs = hcl(recipe.text("tattle.tf"))["output"]
        values = " ".join(one["value"] for named in outputs for one in named.values())
        found = re.findall(r'tattle\["([\w-]+)"\]\.outputs\["(\w+)"\]', values)
        assert found == [("iam-role", "InstanceProfile")]
        for name, key in found:
            assert key in loaded(f"{name}.yaml")["Outputs"]

    def test_terraform_would_not_write_it_otherwise(self) -> None:
        applies(shutil.which("terraform"), "no terraform, which no distribution has")
        command = ["terraform", "fmt", "-check", "-diff", str(FOLDER / "tattle.tf")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "")
