"""The botocore session that speaks for this instance: its settings, credentials, partitions."""

from __future__ import annotations

import os
import pwd
import urllib.parse
import urllib.request

from botocore import exceptions
from botocore.credentials import Credentials
from botocore.handlers import BUILTIN_HANDLERS
from botocore.session import Session as AwsSession

from tattle import __version__
from tattle.aws.errors import ROLE, configuring, translate_errors
from tattle.aws.http import patch_botocore
from tattle.aws.imds import PARTITION, Imds, valid_in_header
from tattle.errors import TattleError
from tattle.event.identity import IdentityDocument
from tattle.trust import trusted

# botocore's setting as it has it, but for the default, which is 1
IMDS_ATTEMPTS = ("metadata_service_num_attempts", "AWS_METADATA_SERVICE_NUM_ATTEMPTS", 3, int)
# Of the names of botocore's events, the service: to register the handlers of all takes 3 ms.
SERVICES = ("", "events", "sts")
# A profile's settings that name another source than the instance's role
PROFILE_SOURCES = ("credential_process", "web_identity_token_file", "mfa_serial", "sso_session")


def aws_session() -> tuple[AwsSession, Imds]:
    """Return a botocore session that speaks IMDSv2 only, and its IMDS. Raises TattleError."""
    patch_botocore()
    with translate_errors(), configuring():
        settings = {IMDS_ATTEMPTS[0]: IMDS_ATTEMPTS}
        session = AwsSession(session_vars=settings, include_builtin_handlers=False)
        for name, handler, *_ in BUILTIN_HANDLERS:
            if f"{name}.".split(".")[1] in SERVICES:
                session.register(name, handler)
        ca_bundle = session.get_config_variable("ca_bundle")
        if ca_bundle and not os.access(os.path.expanduser(ca_bundle), os.R_OK):
            advice = f"fix or remove it: ls -l {ca_bundle}"
            raise TattleError(f"ca_bundle: can't read {ca_bundle}", os.EX_CONFIG, advice)
        if os.geteuid() == 0:
            require_trusted_aws_files(session)
        session.user_agent_name, session.user_agent_version = "tattle", __version__
        session.set_config_variable("ec2_metadata_v1_disabled", True)
        imds = Imds(session)
        host = urllib.parse.urlsplit(imds.url).netloc
        if not urllib.request.proxy_bypass(host):
            # botocore would ask for the credentials through the proxy that a shell has set.
            others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
            os.environ["no_proxy"] = f"{others},{host}"
        return session, imds


def require_trusted_aws_files(session: AwsSession) -> None:
    """Raise TattleError if root's AWS files could have been written by somebody else.

    Files that a variable names are the caller's choice; under PAM there is no variable.
    """
    setting = session.get_config_variable
    for variable, path in (
        ("AWS_CONFIG_FILE", setting("config_file")),
        ("AWS_SHARED_CREDENTIALS_FILE", setting("credentials_file")),
        ("AWS_CA_BUNDLE", setting("ca_bundle")),
        ("AWS_DATA_PATH", "~/.aws/models"),  # service models, which botocore prefers to its own
        ("BOTO_CONFIG", "/etc/boto.cfg"),
        ("BOTO_CONFIG", "~/.boto"),
    ):
        if path and variable not in os.environ:
            try:
                trusted(os.path.abspath(os.path.expanduser(path)))
            except FileNotFoundError:
                pass
            except TattleError as error:
                if os.path.expanduser("~") != pwd.getpwuid(0).pw_dir:  # sudo kept the caller's HOME
                    error.advice = "HOME is not root's: unset it, or use sudo's option -H"
                raise


def find_credentials(session: AwsSession, imds: Imds) -> Credentials:
    """Return botocore's credentials, from wherever it has them. Raises TattleError."""
    with translate_errors(imds, "STS"):
        try:
            credentials = session.get_credentials()
            if credentials is None:
                raise exceptions.NoCredentialsError
            parts = credentials.get_frozen_credentials()  # of STS, for some
        except (ValueError, TypeError, RuntimeError, OSError, EOFError) as error:
            # botocore does not validate what IMDS, or a profile's program or file, gives it.
            profile = session.get_scoped_config()
            provider = next((source for source in PROFILE_SOURCES if source in profile), ROLE)
            why = str(error) or type(error).__name__
            raise exceptions.CredentialRetrievalError(provider=provider, error_msg=why) from error
        if not all(map(valid_in_header, (parts.access_key, parts.token or "none"))):
            method = credentials.method
            raise exceptions.CredentialRetrievalError(provider=method, error_msg="not printable")
        return credentials


def arn(session: AwsSession, imds: Imds, document: IdentityDocument) -> str:
    """Return the instance's ARN, in the partition of its region. Raises TattleError."""
    region, account = document["region"], document["accountId"]
    try:
        partition = session.get_partition_for_region(region)
    except exceptions.UnknownRegionError:  # newer than this botocore: IMDS knows where it is
        partition = imds.name(PARTITION) or "aws"
    return f"arn:{partition}:ec2:{region}:{account}:instance/{document['instanceId']}"
