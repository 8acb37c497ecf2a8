"""The fixtures: the built artifact, a clean environment, the stand-ins, moto and the instance."""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from standins import confinement
from standins.eventbridge import EventBridge
from standins.imds import Imds
from standins.instance import Instance
from support import (
    ARTIFACT,
    clean_environment,
    find_pythons,
    mount_own_cache,
    need_root,
    nothing_left_in_the_cache,
)

FOREIGN_VARIABLE = re.compile(r"AWS_|BOTO|SSL|PYTHON|.*_PROXY$|.*_CA_BUNDLE$", re.IGNORECASE)
TATTLE_TIMEOUT_SECONDS = 60  # a failure, not a limit that is tested


@pytest.fixture(scope="session", autouse=True)
def _clean_process() -> Iterator[None]:
    """AWS clients in the tests' own process see nothing of this machine's configuration either."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if FOREIGN_VARIABLE.match(name):
                patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield


def pytest_configure(config: pytest.Config) -> None:
    """Root who can't have a /var/cache of their own uses the machine's, or nothing is run."""
    if os.geteuid() == 0 and confinement.missing() and not hasattr(config, "workerinput"):
        used = ExitStack()
        try:
            used.enter_context(nothing_left_in_the_cache())
        except FileExistsError as error:
            pytest.exit(str(error), returncode=1)
        config.add_cleanup(used.close)


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> None:
    """What is unpacked on this machine, by other checkouts' tests maybe, is not these tests'."""
    mount_own_cache()


@pytest.fixture(scope="session")
def artifact() -> Path:
    """The built executable, which build.sh makes."""
    if not ARTIFACT.exists():
        pytest.fail(f"there is no {ARTIFACT}: run ./build.sh first")
    return ARTIFACT


@pytest.fixture
def clean_env(tmp_path: Path) -> dict[str, str]:
    """A minimal environment with nothing of this machine's."""
    home = tmp_path / "home"
    home.mkdir()
    return clean_environment(home)


@pytest.fixture
def imds() -> Iterator[Imds]:
    with Imds() as stand_in:
        yield stand_in


@pytest.fixture
def eventbridge() -> Iterator[EventBridge]:
    with EventBridge() as stand_in:
        yield stand_in


@pytest.fixture(scope="session")
def aws_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what botocore reads for us, without the other services' hundreds of folders,
    which it would look through for each client."""
    import botocore

    data, folder = Path(botocore.__file__).parent / "data", tmp_path_factory.mktemp("botocore")
    for path in (*data.glob("*.json"), data / "events", data / "sts"):
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def on_ec2(
    imds: Imds,
    eventbridge: EventBridge,
    aws_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Have the tests' own process be on an instance: the stand-ins serve it, once asked."""
    monkeypatch.setattr("botocore.loaders.Loader.BUILTIN_DATA_PATH", str(aws_data))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_EVENTBRIDGE", eventbridge.url)
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")


class Tattle(Protocol):
    """Runs the artifact from a shell. `env` is added to the clean environment that points to the
    stand-ins; None there removes a variable. `python`: run it under that interpreter instead."""

    def __call__(
        self,
        *arguments: str,
        env: Mapping[str, str | bytes | None] | None = None,
        python: str | None = None,
        timeout: float = TATTLE_TIMEOUT_SECONDS,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def tattle(
    artifact: Path, clean_env: dict[str, str], imds: Imds, eventbridge: EventBridge
) -> Tattle:
    environment: dict[str, str | bytes | None] = {
        **clean_env,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url,
        "AWS_ENDPOINT_URL_EVENTBRIDGE": eventbridge.url,
    }

    def run(
        *arguments: str,
        env: Mapping[str, str | bytes | None] | None = None,
        python: str | None = None,
        timeout: float = TATTLE_TIMEOUT_SECONDS,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        command: Sequence[str] = [python, "-IS", str(artifact)] if python else [str(artifact)]
        merged = {**environment, **(env or {})}
        return subprocess.run(
            [*command, *arguments],
            env={name: value for name, value in merged.items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=timeout,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def pythons() -> dict[str, str]:
    """Every Python on this machine from 3.9 on: "3.9" → path."""
    return find_pythons()


@pytest.fixture(scope="session")
def shared_instance(artifact: Path) -> Iterator[Instance]:
    """For `instance`. What it holds is as the last test left it."""
    need_root(*Instance.TOOLS)
    with Instance(artifact) as box:
        yield box


@pytest.fixture
def instance(shared_instance: Instance) -> Instance:
    """A throwaway instance with tattle installed, as new. It is one for the whole run, reset before
    each test; a test that wants another one makes it: `with Instance(artifact, …) as box`."""
    shared_instance.reset()
    return shared_instance


class Moto(NamedTuple):
    """moto's server with its clients. What was made in it is gone with the next test."""

    url: str
    events: Any
    sqs: Any

    def client(self, service: str, region: str = "us-east-1") -> Any:
        import boto3

        return boto3.client(
            service,
            region_name=region,
            endpoint_url=self.url,
            aws_access_key_id="moto",
            aws_secret_access_key="moto",
        )


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def moto_server(moto_url: str) -> Moto:
    urllib.request.urlopen(urllib.request.Request(f"{moto_url}/moto-api/reset", method="POST"))
    moto = Moto(moto_url, None, None)
    return moto._replace(events=moto.client("events"), sqs=moto.client("sqs"))
