"""Makes dist/tattle.cdx.json: what dist/tattle holds of others' work, as a CycloneDX 1.6 document.

It lists what is found in the archive, not what ought to be there: a component is a locked wheel
that files of the archive come from. Like the archive's, its bytes depend on the checkout and the
lock alone: the serial number is made from the content, and there is no timestamp.

https://cyclonedx.org/docs/1.6/json/
"""

import hashlib
import json
import re
import sys
import uuid
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ARTIFACT = ROOT / "dist" / "tattle"
TARGET = ROOT / "dist" / "tattle.cdx.json"
LOCK = ROOT / "requirements.lock"
WHEELS = Path(sys.prefix) / "wheels"  # what pip installed; see build.sh

SPDX_IDS = ("Apache-2.0", "MIT")  # of those in use, what is an id and not a description
# Where the archive has a wheel's files: all of the run-time packages, and what shiv adds.
PLACES = (("site-packages/", ""), ("_bootstrap/", "shiv/bootstrap/"))


class Wheel(NamedTuple):
    """A wheel that pip installed, and which of its files are in the archive as they are."""

    metadata: Message
    sha256: str
    packed: int
    all: int

    @property
    def name(self) -> str:
        return str(self.metadata["Name"])

    @property
    def purl(self) -> str:
        """https://github.com/package-url/purl-spec/blob/main/types-doc/pypi-definition.md"""
        return f"pkg:pypi/{normalized(self.name)}@{self.metadata['Version']}"


def normalized(name: str) -> str:
    """https://packaging.python.org/en/latest/specifications/name-normalization/"""
    return re.sub(r"[-_.]+", "-", name).lower()


def wheels(archived: dict[str, bytes]) -> list[Wheel]:
    """The wheels that the archive's files come from, in the order of their names."""
    locked = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", LOCK.read_text("utf-8")))
    found = []
    for path in sorted(WHEELS.glob("*.whl")):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if sha256 not in locked:
            sys.exit(f"sbom: the lock does not name {path.name}")
        with zipfile.ZipFile(path) as wheel:
            files = {n: wheel.read(n) for n in wheel.namelist() if ".dist-info/" not in n}
            (info,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = HeaderParser().parsestr(wheel.read(info).decode())
        packed = {
            name
            for name, data in files.items()
            for here, there in PLACES
            if name.startswith(there) and archived.get(here + name[len(there) :]) == data
        }
        if packed:
            found.append(Wheel(metadata, sha256, len(packed), len(files)))
    return found


def licences(metadata: Message) -> list[dict[str, Any]]:
    """What the package's metadata says of its licence, in its own words."""
    said = metadata["License-Expression"] or metadata["License"]
    if said in SPDX_IDS:
        return [{"license": {"id": said}}]
    classifiers = metadata.get_all("Classifier", [])
    names = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")]
    return [{"license": {"name": name}} for name in names or [said]]


def component(wheel: Wheel) -> dict[str, Any]:
    """A library, by the wheel that it was taken from."""
    return {
        "type": "library",
        "bom-ref": wheel.purl,
        "name": wheel.name,
        "version": wheel.metadata["Version"],
        "description": wheel.metadata["Summary"],
        "scope": "required",
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
        "licenses": licences(wheel.metadata),
        "purl": wheel.purl,
        "pedigree": {
            "notes": f"The hash is the wheel's. {wheel.packed} of its {wheel.all} files are in the"
            " archive as they are; src/pack.py says why the others are not."
        },
    }


def dependencies(of: Wheel, among: list[Wheel]) -> list[str]:
    """The wheels that a wheel's metadata asks for without a condition on extras."""
    asked = {
        normalized(re.split(r"[^\w.-]", line, maxsplit=1)[0])
        for line in of.metadata.get_all("Requires-Dist", [])
        if "extra ==" not in line
    }
    return [wheel.purl for wheel in among if normalized(wheel.name) in asked]


def document(artifact: Path) -> dict[str, Any]:
    """The CycloneDX document of an artifact."""
    sha256 = hashlib.sha256(artifact.read_bytes()).hexdigest()
    with zipfile.ZipFile(artifact) as archive:
        archived = {name: archive.read(name) for name in archive.namelist()}
    source = archived["site-packages/tattle/__init__.py"].decode()
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    found = wheels(archived)
    own = f"pkg:generic/tattle@{version}"
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, sha256)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": "tattle",
                "version": version,
                "description": "Reports every SSH login and logout on an EC2 instance to Amazon"
                " EventBridge",
                "hashes": [{"alg": "SHA-256", "content": sha256}],
                "licenses": [{"license": {"id": "MIT"}}],
                "purl": own,
            },
        },
        "components": [component(wheel) for wheel in found],
        "dependencies": [
            {"ref": own, "dependsOn": [wheel.purl for wheel in found]},
            *({"ref": wheel.purl, "dependsOn": dependencies(wheel, found)} for wheel in found),
        ],
    }


def main() -> None:
    """Write dist/tattle.cdx.json, and say what is in it."""
    made = document(ARTIFACT)
    text = json.dumps(made, indent=2, ensure_ascii=False) + "\n"
    new = TARGET.with_suffix(".new")
    new.write_text(text, "utf-8")
    new.chmod(0o644)
    new.replace(TARGET)
    named = ", ".join(f"{part['name']} {part['version']}" for part in made["components"])
    print(f"dist/{TARGET.name}: {named}")


if __name__ == "__main__":
    main()
