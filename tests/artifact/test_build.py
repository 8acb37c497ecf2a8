"""dist/tattle: the same bytes wherever and whenever it is built, of what the lock names alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from support import ROOT, SYSTEM_PYTHON, copy_checkout, need, need_pythons

LOCK = ROOT / "requirements.lock"
WHEELS = ROOT / ".venv" / "wheels"  # what build.sh installed its tools from
RUNTIME = {"botocore", "jmespath", "python-dateutil", "six", "urllib3"}
PACKAGE = ROOT / "src" / "tattle"
PACKED = {"botocore", "dateutil", "jmespath", "six.py", "tattle", "urllib3"}
MADE_HERE = "site-packages/botocore/data/"  # but for the CA bundle, JSON that pack.py cut to size
AMAZON_ROOTS = "site-packages/tattle/aws/amazon_roots.pem"  # which it took from the CA bundle
A_WEEK_SECONDS = 7 * 24 * 3600
FILES = {"tattle": 0o755, "tattle.sha256": 0o644, "tattle.cdx.json": 0o644}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build(
    folder: Path, *, python: str, home: Path, wrapper: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """./build.sh in there, with the wheels that built the artifact and without a network."""
    return subprocess.run(
        [*wrapper, "./build.sh"],
        cwd=folder,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "PYTHON": python,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(WHEELS),
            **environment,
        },
        capture_output=True,
        text=True,
    )


def builder() -> str:
    """The Python that built the artifact: `made-from` begins with its path."""
    return (ROOT / ".venv" / "made-from").read_text().split(" ")[0]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, pythons: dict[str, str]) -> Iterator[Path]:
    """A checkout built from nothing by another Python, umask, locale, time zone and home, of files
    of another date, a week later."""
    need(shutil.which("faketime"), "needs faketime")
    own = subprocess.run(
        [builder(), "-Ic", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    # The one wheel in WHEELS that is not pure Python, zopfli's, is for 3.10 and newer, or for 3.9.
    others = [path for version, path in pythons.items() if version not in (own, "3.9")]
    need_pythons(others and own != "3.9", "second Python from 3.10 on")
    folder = tmp_path_factory.mktemp("an other place") / "ä"
    umask = os.umask(0o077)
    try:
        copy_checkout(folder)
        for path in folder.rglob("*"):
            os.utime(path, (0, time.time() - 1000 * A_WEEK_SECONDS))
        done = build(
            folder,
            python=others[-1],
            home=tmp_path_factory.mktemp("builders-home"),
            wrapper=("faketime", "-f", f"+{A_WEEK_SECONDS}"),
            TZ="Pacific/Kiritimati",
            LC_ALL="C",
            PYTHONDONTWRITEBYTECODE="1",
            SOURCE_DATE_EPOCH="1000000000",
        )
    finally:
        os.umask(umask)
    assert done.returncode == 0, done.stderr
    assert "installing build tools" in done.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def archive(artifact: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(artifact)


@pytest.fixture(scope="module")
def sbom(artifact: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(artifact.with_name("tattle.cdx.json").read_text())
    return document


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestReproducible:
    @pytest.mark.parametrize(("name", "mode"), FILES.items())
    def test_two_checkouts_two_builders_two_days_make_the_same_bytes(
        self, artifact: Path, elsewhere: Path, name: str, mode: int
    ) -> None:
        here, there = artifact.with_name(name), elsewhere / "dist" / name
        assert digest(here) == digest(there), "or dist/ is older than this checkout"
        assert there.stat().st_mode & 0o777 == mode, "whatever the umask"

    def test_nothing_else_is_built(self, elsewhere: Path) -> None:
        assert {path.name for path in (elsewhere / "dist").iterdir()} == {*FILES}

    def test_no_path_of_the_builder_is_inside(self, elsewhere: Path) -> None:
        built = [path.read_bytes() for path in (elsewhere / "dist").iterdir()]
        with zipfile.ZipFile(elsewhere / "dist" / "tattle") as archive:
            names = [name for name in archive.namelist() if "/recipes/" not in name]  # as they are
            built += [archive.read(name) for name in names]
        for trace in ("an other place", "builders-home", str(ROOT), str(Path.home()), sys.prefix):
            assert not [data for data in built if trace.encode() in data]

    def test_a_second_build_installs_nothing(self, elsewhere: Path) -> None:
        """And keeps what zopfli made, so that it takes seconds."""
        python = (elsewhere / ".venv" / "made-from").read_text().split(" ")[0]
        done = build(elsewhere, python=python, home=elsewhere)
        assert (done.returncode, done.stderr) == (0, "")
        assert {path.name for path in (elsewhere / "dist").iterdir()} == {*FILES}

    def test_the_checksum_file_is_what_sha256sum_checks(self, artifact: Path) -> None:
        command = ["sha256sum", "--check", "--strict", "tattle.sha256"]
        done = subprocess.run(command, cwd=artifact.parent, capture_output=True, text=True)
        assert done.stdout == "tattle: OK\n", done.stderr


class TestTheLock:
    @pytest.mark.slow
    def test_a_wheel_that_was_tampered_with_is_refused(self, tmp_path: Path) -> None:
        wheels, checkout = tmp_path / "wheels", tmp_path / "checkout"
        shutil.copytree(WHEELS, wheels)
        (six,) = wheels.glob("six-*.whl")
        with zipfile.ZipFile(six, "a") as tampered:
            tampered.writestr("six-more.py", "")
        copy_checkout(checkout)
        done = build(checkout, python=builder(), home=tmp_path, PIP_FIND_LINKS=str(wheels))
        assert done.returncode != 0
        assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
        assert "six" in done.stderr
        assert not (checkout / "dist").exists()

    def test_every_requirement_is_pinned_and_hashed(self) -> None:
        text = re.sub(r"\\\n", "", LOCK.read_text())
        for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
            assert re.match(r"[\w.-]+==[\w.]+( ; [^;]+)?( +--hash=sha256:[0-9a-f]{64})+$", line)


class TestWhatIsInside:
    def test_every_packed_file_is_that_of_a_wheel_that_the_lock_names(
        self, archive: zipfile.ZipFile
    ) -> None:
        locked = LOCK.read_text()
        originals: dict[str, bytes] = {}
        for wheel in WHEELS.glob("*.whl"):
            assert f"--hash=sha256:{digest(wheel)}" in locked
            with zipfile.ZipFile(wheel) as opened:
                originals.update((f"site-packages/{n}", opened.read(n)) for n in opened.namelist())
        for path in PACKAGE.rglob("*"):
            if path.is_file():
                originals[f"site-packages/tattle/{path.relative_to(PACKAGE)}"] = path.read_bytes()
        for name in archive.namelist():
            made_here = name.startswith(MADE_HERE) and name.endswith(".json")
            if name.startswith("site-packages/") and not made_here and name != AMAZON_ROOTS:
                assert archive.read(name) == originals[name], name

    def test_botocores_data_are_a_part_of_the_originals(self, archive: zipfile.ZipFile) -> None:
        names = [name for name in archive.namelist() if name.startswith(MADE_HERE)]
        data = [name[len(MADE_HERE) :] for name in names]
        services = {name.split("/")[0] for name in data if "/" in name}
        assert services == {"events", "sts"}
        model = json.loads(archive.read(f"{MADE_HERE}events/2015-10-07/service-2.json"))
        assert set(model["operations"]) == {"DescribeEventBus", "PutEvents"}

    def test_amazons_authorities_are_five_of_botocores(self, archive: zipfile.ZipFile) -> None:
        # https://www.amazontrust.com/repository asks relying parties to trust all five.
        certificates = re.findall(
            "-----BEGIN[^#]+?-----END.*\n", archive.read(AMAZON_ROOTS).decode()
        )
        assert len(certificates) == 5
        bundle = archive.read("site-packages/botocore/cacert.pem").decode()
        assert all(certificate in bundle for certificate in certificates)

    def test_the_entry_point_comes_first_and_what_a_login_may_read_is_stored(
        self, archive: zipfile.ZipFile
    ) -> None:
        assert archive.namelist()[0] == "__main__.py"
        modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
        ours = {f"site-packages/tattle/{name}" for name in modules - {"__main__.py"}}
        ours.add("__main__.py")
        stored = {i.filename for i in archive.infolist() if i.compress_type == zipfile.ZIP_STORED}
        assert ours <= stored

    def test_the_first_line_runs_exactly_the_entry_point(
        self, archive: zipfile.ZipFile, artifact: Path
    ) -> None:
        content = artifact.read_bytes()
        line = content.partition(b"\n")[0]
        seek, read = re.findall(rb"f\.(?:seek|read)\((\d+)\)", line)
        first = content[int(seek) :][: int(read)]
        assert first == archive.read("__main__.py")
        build_id = json.loads(archive.read("environment.json"))["build_id"]
        source = (PACKAGE / "__main__.py").read_text().replace('"none"', f'"{build_id}"')
        assert re.sub(r"#-*\n$", "", first.decode()) == source

    def test_the_first_line_is_one_that_kernels_take(self, artifact: Path) -> None:
        """And shuts out what others set up. 255 bytes with `#!`: execve(2), since Linux 5.1."""
        with artifact.open("rb") as file:
            line = file.readline().rstrip(b"\n")
        assert len(line) <= 255
        unset = b"--ignore-signal=HUP,TERM -u PYTHONEXECUTABLE -u __PYVENV_LAUNCHER__ -u TZ"
        assert line.startswith(b"#!/usr/bin/env -S " + unset + b" /usr/bin/python3 -BISXutf8 -c ")
        assert artifact.stat().st_mode & 0o777 == 0o755

    def test_nothing_is_inside_that_is_not_meant(self, archive: zipfile.ZipFile) -> None:
        for name in archive.namelist():
            assert re.fullmatch(
                r"__main__\.py|_bootstrap/\w+\.py|environment\.json|LICENSES\.txt"
                r"|site-packages/tattle/recipes/[\w.-]+"
                r"|site-packages/[\w./-]+\.(py|json|pem)",
                name,
            )
            assert not re.search(r"\.\.|/tests?/|test_|dist-info|__pycache__", name)
        packed = {name.split("/")[1] for name in archive.namelist() if "site-packages/" in name}
        assert packed == PACKED

    def test_every_entry_has_the_same_mode_and_date(self, archive: zipfile.ZipFile) -> None:
        for info in archive.infolist():
            assert oct(info.external_attr >> 16) == oct(0o100644)
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            found = (info.create_system, info.flag_bits, info.extra, info.comment)
            assert found == (3, 0, b"", b"")
        assert archive.testzip() is None

    def test_every_licence_is_inside(self, archive: zipfile.ZipFile) -> None:
        text = archive.read("LICENSES.txt").decode()
        assert text.index((ROOT / "LICENSE").read_text()) < text.index("Apache License")
        for package in ("botocore", "jmespath", "python_dateutil", "shiv", "six", "urllib3"):
            assert re.search(rf"^{package}-[\d.]+\S*: LICENSE", text, re.MULTILINE)


class TestOtherTools:
    """The archive is an ordinary one of shiv's."""

    def test_python_runs_it(self, artifact: Path) -> None:
        done = subprocess.run(
            [SYSTEM_PYTHON, artifact, "--version"], capture_output=True, text=True
        )
        assert re.fullmatch(r"tattle \d+\.\d+\S* of [0-9-]+, build .*\n", done.stdout), done

    def test_shiv_info_reads_it(self, artifact: Path, archive: zipfile.ZipFile) -> None:
        shiv_info = "from shiv.info import main; main()"
        command = [str(ROOT / ".venv/bin/python"), "-Ic", shiv_info, "--json", str(artifact)]
        done = subprocess.run(command, capture_output=True, text=True)
        told = json.loads(done.stdout)
        assert told["build_id"] == json.loads(archive.read("environment.json"))["build_id"]
        assert told["entry_point"] == "tattle.shell.cli:main"

    def test_unzip_finds_nothing_wrong(self, artifact: Path) -> None:
        need(shutil.which("unzip"), "needs unzip")
        done = subprocess.run(["unzip", "-t", artifact], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert "No errors detected" in done.stdout


class TestSbom:
    def test_it_is_valid_by_the_official_schema(self, artifact: Path) -> None:
        text = artifact.with_name("tattle.cdx.json").read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None

    def test_it_names_the_artifact_by_its_hash(self, artifact: Path, sbom: dict[str, Any]) -> None:
        made = sbom["metadata"]["component"]
        source = (ROOT / "src" / "tattle" / "__init__.py").read_text()
        version = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
        assert version
        assert (made["name"], made["version"]) == ("tattle", version[1])
        assert made["hashes"] == [{"alg": "SHA-256", "content": digest(artifact)}]

    def test_it_names_what_is_packed_as_it_is_locked(self, sbom: dict[str, Any]) -> None:
        components = {part["name"]: part for part in sbom["components"]}
        assert set(components) == RUNTIME | {"shiv"}
        for name, part in components.items():
            lines = LOCK.read_text().partition(f"\n{name}=={part['version']} ")[2]
            hashes = re.match(r"(?:.*\\\n)*.*\n", lines)
            assert hashes
            assert f"--hash=sha256:{part['hashes'][0]['content']}" in hashes[0]
            assert part["purl"] == f"pkg:pypi/{name}@{part['version']}"
            assert all(licence["license"].popitem()[1] for licence in part["licenses"])

    def test_it_tells_who_needs_whom(self, sbom: dict[str, Any]) -> None:
        def name(reference: str) -> str:
            return reference.partition("@")[0].rpartition("/")[2]

        needs = {name(d["ref"]): set(map(name, d["dependsOn"])) for d in sbom["dependencies"]}
        assert needs["tattle"] == RUNTIME | {"shiv"}
        assert needs["botocore"] == {"jmespath", "python-dateutil", "urllib3"}
        assert needs["python-dateutil"] == {"six"}
        assert needs["shiv"] == set()  # what it asks for is not packed
