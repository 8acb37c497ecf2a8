"""The recipes for those who receive the events, as they stand in README.md: event patterns, a
CloudFormation template, the same in Terraform and with the AWS CLI.

moto plays AWS. It evaluates event patterns and input transformers, and delivers to SQS. What it
can't do is said where it matters.
"""

from __future__ import annotations

import ast
import copy
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import readme_blocks as readme
from conftest import Moto, Tattle
from support import need

SOURCE = "com.unbounce.tattle"
DETAIL_TYPE = "SSH connection event detected"
ARN = "arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"
MAIL = "security@example.com"
STACK = "ssh-logins"
# AWS CLI 1 overrides AWS_ENDPOINT_URL for SQS, but not the option.
TO_MOTO = 'aws() { command aws --endpoint-url "$MOTO" "$@"; }\n'
pytestmark = pytest.mark.filterwarnings(
    "ignore:Tried to parse AWS..(SNS..Topic|SQS..Queue)Policy:UserWarning"
)

VENV = Path(sys.executable).parent
PATTERNS = ("all", "opened", "user", "cidr", "not-cidr")
# https://github.com/aws/event-ruler, JsonRuleCompiler: what `anything-but` may hold besides values
ANYTHING_BUT = {"prefix", "suffix", "equals-ignore-case", "wildcard"}
PATTERN_LIMIT = (
    2048  # characters, https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-quota.html
)


class Said(NamedTuple):
    """The detail of an event, and where it says it is from."""

    username: str
    remote_host: str
    session: str = "opened"
    source: str = SOURCE


UBUNTU = Said("ubuntu", "1.2.3.4")
UBUNTU_OUT = Said("ubuntu", "1.2.3.4", "closed")
ROOT_INSIDE = Said("root", "10.255.0.1")
ALICE_INSIDE_OUT = Said("alice", "10.0.0.1", "closed")
NEIGHBOUR = Said("alice", "100.0.0.1")
IPV6 = Said("alice", "2001:db8::1")
NAME = Said("alice", "bastion.example.com")
NOWHERE = Said("alice", "")
STRANGER = Said("root", "10.0.0.1", source="com.example.other")
EVENTS = (
    UBUNTU,
    UBUNTU_OUT,
    ROOT_INSIDE,
    ALICE_INSIDE_OUT,
    NEIGHBOUR,
    IPV6,
    NAME,
    NOWHERE,
    STRANGER,
)
OURS = {*EVENTS} - {STRANGER}
MATCHES = {
    "all": OURS,
    "opened": OURS - {UBUNTU_OUT, ALICE_INSIDE_OUT},
    "user": {ROOT_INSIDE},
    "cidr": {ROOT_INSIDE},
    "not-cidr": OURS - {ROOT_INSIDE, UBUNTU_OUT, ALICE_INSIDE_OUT},
}


def pattern(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(readme.text(f"pattern-{name}"))
    return found


def entry(said: Said) -> dict[str, Any]:
    detail = {name: getattr(said, name) for name in ("username", "remote_host", "session")}
    return {
        "Source": said.source,
        "DetailType": DETAIL_TYPE,
        "Resources": [ARN],
        "Detail": json.dumps(detail),
    }


def make_queue(moto: Moto, name: str) -> tuple[str, str]:
    """A queue's URL and ARN."""
    url = moto.sqs.create_queue(QueueName=name)["QueueUrl"]
    asked = moto.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    return url, asked["Attributes"]["QueueArn"]


def received(moto: Moto, url: str) -> list[Any]:
    """All messages of a queue."""
    found: list[Any] = []
    while messages := moto.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get(
        "Messages"
    ):
        for message in messages:
            found.append(json.loads(message["Body"]))
            moto.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return found


def matched(moto: Moto, event_pattern: Mapping[str, Any]) -> set[Said]:
    """Which of EVENTS reach a queue through a rule with that pattern."""
    name = f"rule-{time.time_ns()}"
    url, arn = make_queue(moto, name)
    moto.events.put_rule(Name=name, EventPattern=json.dumps(event_pattern))
    moto.events.put_targets(Rule=name, Targets=[{"Id": "queue", "Arn": arn}])
    answer = moto.events.put_events(Entries=[entry(said) for said in EVENTS])
    assert answer["FailedEntryCount"] == 0
    moto.events.remove_targets(Rule=name, Ids=["queue"])
    moto.events.delete_rule(Name=name)
    return {Said(**event["detail"], source=event["source"]) for event in received(moto, url)}


def values(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a pattern."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in items:
        if isinstance(child, (dict, list)):
            yield from values(child, (*path, key))
        else:
            yield (*path, key)


def with_another_value(node: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    changed: Any = copy.deepcopy(node)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = "192.0.2.0/24" if path[-1] == "cidr" else "something else"
    return dict(changed)


class TestPatterns:
    @pytest.mark.parametrize("name", PATTERNS)
    def test_it_matches_what_it_says(self, moto_server: Moto, name: str) -> None:
        assert matched(moto_server, pattern(name)) == MATCHES[name]

    @pytest.mark.parametrize("name", PATTERNS)
    def test_every_value_in_it_counts(self, moto_server: Moto, name: str) -> None:
        """So it is moto's matcher that decides above: with another value the result is another."""
        for path in values(pattern(name)):
            changed = with_another_value(pattern(name), path)
            assert matched(moto_server, changed) != MATCHES[name], path

    @pytest.mark.parametrize("name", PATTERNS)
    def test_eventbridge_knows_the_operators(self, name: str) -> None:
        """moto would let `anything-but` hold a `cidr`, and EventBridge would not."""
        text = json.dumps(pattern(name))
        assert len(text) <= PATTERN_LIMIT
        for path in values(pattern(name)):
            if "anything-but" in path:
                inner = path[path.index("anything-but") + 1]
                assert inner in ANYTHING_BUT

    def test_several_beginnings(self, moto_server: Moto) -> None:
        """What the text says of lists: of 10.0.0.0/8 and 172.16.0.0/12."""
        changed = pattern("not-cidr")
        (condition,) = changed["detail"]["remote_host"]
        octets = [f"172.{second}." for second in range(16, 32)]
        condition["anything-but"]["prefix"] = [condition["anything-but"]["prefix"], *octets]
        assert len(json.dumps(changed)) <= PATTERN_LIMIT
        assert matched(moto_server, changed) == MATCHES["not-cidr"]


class Deployed(NamedTuple):
    """What a recipe made, as far as the recipes should agree."""

    pattern: Any
    transformer: Any
    topic_statement: Any
    queue_statement: Any
    queue_settings: dict[str, str]
    subscriptions: list[tuple[str, str]]


def deployed(moto: Moto) -> Deployed:
    """What is in moto, with ARNs replaced by what they name."""
    sns = moto.client("sns")
    (rule,) = moto.events.list_rules()["Rules"]
    (target,) = moto.events.list_targets_by_rule(Rule=rule["Name"])["Targets"]
    (topic,) = (one["TopicArn"] for one in sns.list_topics()["Topics"])
    (queue_url,) = moto.sqs.list_queues()["QueueUrls"]
    queue = moto.sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["All"])["Attributes"]
    assert target["Arn"] == topic
    assert target["DeadLetterConfig"]["Arn"] == queue["QueueArn"]

    def statement(policy: str) -> Any:
        for arn, name in ((topic, "topic"), (queue["QueueArn"], "queue"), (rule["Arn"], "rule")):
            policy = policy.replace(arn, name)
        (found,) = json.loads(policy)["Statement"]
        return found

    subscriptions = sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
    return Deployed(
        pattern=json.loads(rule["EventPattern"]),
        transformer=target["InputTransformer"],
        topic_statement=statement(sns.get_topic_attributes(TopicArn=topic)["Attributes"]["Policy"]),
        queue_statement=statement(queue["Policy"]),
        queue_settings={
            name: queue[name] for name in ("MessageRetentionPeriod", "SqsManagedSseEnabled")
        },
        subscriptions=[(one["Protocol"], one["Endpoint"]) for one in subscriptions],
    )


def shell(moto: Moto, folder: Path, script: str) -> None:
    """Run a block as it stands, with the AWS CLI that the tests have and moto for AWS."""
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", TO_MOTO + script],
        cwd=folder,
        env={
            "PATH": f"{VENV}:/usr/bin:/bin",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "AWS_CONFIG_FILE": os.devnull,
            "MOTO": moto.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "moto",
            "AWS_SECRET_ACCESS_KEY": "moto",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def template(tmp_path: Path) -> Path:
    file = tmp_path / "logins.yaml"
    file.write_text(readme.text("cloudformation"))
    return file


@pytest.fixture
def stack(moto_server: Moto, template: Path) -> Moto:
    """The template, deployed by the command below it.

    moto's CloudFormation knows no TopicPolicy and no QueuePolicy: it warns and goes on. So what the
    template has there is put in place here.
    """
    shell(moto_server, template.parent, readme.text("cloudformation-deploy"))
    resources, resolve = resolver(moto_server, template)
    for name, resource in resources.items():
        policy = json.dumps(resolve(resource.get("Properties", {}).get("PolicyDocument")))
        if resource["Type"] == "AWS::SNS::TopicPolicy":
            (topic,) = resolve(resource["Properties"]["Topics"])
            moto_server.client("sns").set_topic_attributes(
                TopicArn=topic, AttributeName="Policy", AttributeValue=policy
            )
        elif resource["Type"] == "AWS::SQS::QueuePolicy":
            (queue,) = resolve(resource["Properties"]["Queues"])
            moto_server.sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": policy})
        else:
            assert name in stack_resources(moto_server), f"{name} was not made"
    return moto_server


def stack_resources(moto: Moto) -> dict[str, str]:
    """The ids of what CloudFormation made, by their names in the template."""
    made = moto.client("cloudformation").list_stack_resources(StackName=STACK)
    listed = made["StackResourceSummaries"]
    return {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in listed}


def resolver(moto: Moto, template: Path) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """The template's resources, and what fills in `!Ref` and `!GetAtt NAME.Arn`."""
    cfn_yaml = importlib.import_module("cfnlint.decode.cfn_yaml")  # untyped
    resources = cfn_yaml.load(str(template))["Resources"]
    ids = stack_resources(moto)

    def arn(name: str) -> str:
        if resources[name]["Type"] == "AWS::Events::Rule":
            return str(moto.events.describe_rule(Name=ids[name])["Arn"])
        asked = moto.sqs.get_queue_attributes(QueueUrl=ids[name], AttributeNames=["QueueArn"])
        return str(asked["Attributes"]["QueueArn"])

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "Ref" in node:
                return ids[node["Ref"]]
            if "Fn::GetAtt" in node:
                name, attribute = node["Fn::GetAtt"]
                assert attribute == "Arn"
                return arn(name)
            return {str(key): resolve(child) for key, child in node.items()}
        return [resolve(child) for child in node] if isinstance(node, list) else node

    return resources, resolve


class TestCloudFormation:
    def test_cfn_lint_has_nothing_to_say(self, template: Path) -> None:
        command = [str(VENV / "cfn-lint"), "--", str(template)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr

    def test_it_deploys(self, stack: Moto) -> None:
        made = deployed(stack)
        assert made.pattern == {
            "source": [SOURCE],
            "detail-type": [DETAIL_TYPE],
            "detail": {"session": ["opened"]},
        }
        assert made.topic_statement == {
            "Effect": "Allow",
            "Principal": {"Service": "events.amazonaws.com"},
            "Action": "sns:Publish",
            "Resource": "topic",
        }
        assert made.queue_statement == {
            "Effect": "Allow",
            "Principal": {"Service": "events.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": "queue",
            "Condition": {"ArnEquals": {"aws:SourceArn": "rule"}},
        }
        assert made.queue_settings["MessageRetentionPeriod"] == "1209600"
        assert made.subscriptions == [("email", MAIL)]

    def test_the_role_may_do_what_the_policy_says_and_no_more(self, stack: Moto) -> None:
        iam = stack.client("iam")
        (profile,) = iam.list_instance_profiles()["InstanceProfiles"]
        (role,) = profile["Roles"]
        assert role["AssumeRolePolicyDocument"]["Statement"] == [
            {
                "Effect": "Allow",
                "Principal": {"Service": "ec2.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ]
        (name,) = iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]
        told = iam.get_role_policy(RoleName=role["RoleName"], PolicyName=name)["PolicyDocument"]
        policy = ast.literal_eval(told)  # moto's CloudFormation writes it as Python would
        account = stack.client("sts").get_caller_identity()["Account"]
        shown = readme.text("iam-policy").replace("012345678901", account)
        assert policy == json.loads(shown)

    def test_a_person_gets_a_sentence_for_a_login_and_nothing_for_a_logout(
        self, stack: Moto, tattle: Tattle
    ) -> None:
        """With the rule's own pattern and transformer, and events that tattle itself sends.

        moto can't deliver to SNS, so here a queue takes the topic's place. And it tells the time in
        seconds since the epoch, where EventBridge writes it out.
        """
        (rule,) = stack.events.list_rules()["Rules"]
        (target,) = stack.events.list_targets_by_rule(Rule=rule["Name"])["Targets"]
        url, arn = make_queue(stack, "in-place-of-the-topic")
        stack.events.remove_targets(Rule=rule["Name"], Ids=[target["Id"]])
        stack.events.put_targets(Rule=rule["Name"], Targets=[{**target, "Arn": arn}])
        for kind in ("open_session", "close_session"):
            env = {"PAM_TYPE": kind, "PAM_USER": "ubuntu", "PAM_RHOST": "1.2.3.4"}
            done = tattle(env={**env, "AWS_ENDPOINT_URL_EVENTBRIDGE": stack.url})
            assert done.returncode == 0, done.stderr
        (sentence,) = received(stack, url)
        shown = "".join(readme.prose().partition("The mail is a sentence:")[2].split("*")[1:2])
        at = sentence.rpartition(" ")[2]
        assert sentence == " ".join(shown.strip('"').split()[:-1]) + f" {at}"
        assert abs(float(at.rstrip(".")) - time.time()) < 60


class TestAwsCli:
    def test_it_makes_the_same_as_the_template(
        self, stack: Moto, moto_url: str, tmp_path: Path
    ) -> None:
        expected = deployed(stack)
        cloudformation = stack.client("cloudformation")
        cloudformation.delete_stack(StackName=STACK)
        assert stack.events.list_rules()["Rules"] == []
        folder = tmp_path / "cli"
        folder.mkdir()
        shell(stack, folder, readme.text("aws-cli"))
        assert deployed(stack) == expected


def plain(node: Any) -> Any:
    """What python-hcl2 read, without the quotes around strings and its own marks."""
    if isinstance(node, dict):
        return {plain(key): plain(child) for key, child in node.items() if key != "__is_block__"}
    if isinstance(node, list):
        return [plain(child) for child in node]
    if isinstance(node, str) and node[:1] == node[-1:] == '"':
        return json.loads(node)
    return node


@pytest.fixture(scope="module")
def hcl() -> dict[str, Any]:
    need(importlib.util.find_spec("hcl2"), "needs python-hcl2")
    read = importlib.import_module("hcl2").loads(readme.text("terraform"))
    found: dict[str, Any] = plain(read)
    return found


class TestTerraform:
    """Parsed, not applied: Terraform's provider for AWS does not come from PyPI."""

    def resources(self, hcl: dict[str, Any]) -> dict[str, Any]:
        return {
            f"{kind}.{name}": settings
            for one in hcl["resource"]
            for kind, named in one.items()
            for name, settings in named.items()
        }

    def test_the_rule_is_that_of_the_template(self, stack: Moto, hcl: dict[str, Any]) -> None:
        (local,) = hcl["locals"]
        rule = self.resources(hcl)["aws_cloudwatch_event_rule.logins"]
        assert rule["event_pattern"] == "${jsonencode(local.logins)}"
        assert local["logins"] == deployed(stack).pattern

    def test_the_sentence_is_that_of_the_template(self, stack: Moto, hcl: dict[str, Any]) -> None:
        target = self.resources(hcl)["aws_cloudwatch_event_target.mail"]
        (transformer,) = target["input_transformer"]
        expected = deployed(stack).transformer
        assert transformer["input_paths"] == expected["InputPathsMap"]
        assert transformer["input_template"] == expected["InputTemplate"]

    def test_what_it_refers_to_is_there(self, hcl: dict[str, Any]) -> None:
        resources = self.resources(hcl)
        text = json.dumps(resources)
        for kind_and_name in resources:
            assert kind_and_name.count(".") == 1
        for word in text.replace('"', " ").replace("{", " ").replace("}", " ").split():
            if word.startswith("aws_") and word.count(".") == 2:
                assert word.rpartition(".")[0] in resources, word

    def test_the_queue_is_that_of_the_template(self, stack: Moto, hcl: dict[str, Any]) -> None:
        queue = self.resources(hcl)["aws_sqs_queue.undelivered"]
        settings = deployed(stack).queue_settings
        assert str(queue["message_retention_seconds"]) == settings["MessageRetentionPeriod"]
        subscription = self.resources(hcl)["aws_sns_topic_subscription.mail"]
        assert (subscription["protocol"], subscription["endpoint"]) == ("email", MAIL)
