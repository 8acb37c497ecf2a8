"""Makes dist/tattle of the checkout and the venv it runs in: one file, always the same bytes.

shiv builds the archive; this chooses its files and writes them in order. First comes the
entry point, which the `#!` line runs by its offset and length; then shiv's bootstrap and
site-packages/.
tattle's own modules are not compressed: a login reads them while nothing is unpacked.

The bytes depend on the checkout and requirements.lock and on nothing else: no clock, no umask, not
a name or order in a directory, and not the builder's Python or zlib. Zopfli does the compressing
(locked by hash like the rest), and the zip file's records are written here: Python's zipfile takes
no data that is compressed already. The format: PKWARE's APPNOTE.TXT, sections 4.3.7 to 4.3.16.
"""

import gzip
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import zopfli.zlib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "tattle"
TARGET = ROOT / "dist" / "tattle"
DEFLATED = Path(sys.prefix) / "deflated"  # what zopfli made before; a new lock makes a new venv

# --ignore-signal, coreutils 8.31: systemd ends a session by sending these to every process in it,
# also to the hook that has just been started to report the end.
# -u: variables that Python obeys in spite of -I, and TZ, which may name a FIFO. -I: neither the
# environment, nor the working directory, nor a user's site-packages choose what runs. -S: nor the
# machine's site-packages; and a start without `site` is quicker. -X utf8: nor a locale; one whose
# charset Python lacks would end the hook before our first line. -B: nothing is written on import.
PYTHON = "/usr/bin/python3 -BISXutf8"
SHEBANG = (
    "/usr/bin/env -S --ignore-signal=HUP,TERM -u PYTHONEXECUTABLE -u __PYVENV_LAUNCHER__ -u TZ "
    f"{PYTHON} -c \"import sys;f=open(sys.argv[1],'rb');f.seek(%d);exec(f.read(%d))\""
)
SHEBANG_LIMIT = 255  # bytes with `#!`: BINPRM_BUF_SIZE - 1 since Linux 5.1
FIRST_MEMBER = "__main__.py"
OURS = "site-packages/tattle/*.py"  # stored: what a login may read
# The same for every build, so that an upgrade while the kernel reads the line does no harm.
FIRST_MEMBER_BYTES = 3072
ENTRY_POINT = "tattle.shell.cli:main"

RUNTIME = ("botocore", "dateutil", "jmespath", "six.py", "urllib3")

# What is left out, and why nothing needs it. Everything else of RUNTIME goes in as it is.
LEFT_OUT = {
    "*/py.typed": "for type checkers",
    "botocore/crt/auth.py": "imported only beside awscrt, which we don't ship",
    "botocore/data/*": "see data_files()",
    "botocore/docs/translator.py": "for Sphinx: imports docutils; nothing imports it",
    "botocore/stub.py": "for tests: nothing imports it",
    "dateutil/easter.py": "imported by rrule only",
    "dateutil/rrule.py": "imported by tz.tzical only; botocore uses parser, tzutc and tzlocal",
    "dateutil/tz/win.py": "for Windows; tz.tz does without",
    "dateutil/tzwin.py": "for Windows",
    "dateutil/utils.py": "nothing imports it",
    "dateutil/zoneinfo/*": "imported by tz.gettz only, for time zones by name",
    "urllib3/contrib/emscripten/*": "imported where sys.platform is emscripten",
    "urllib3/contrib/pyopenssl.py": "imports OpenSSL, which we don't ship; botocore does without",
    "urllib3/contrib/socks.py": "imports socks, which we don't ship; nothing imports it",
    "urllib3/http2/connection.py": "imports h2, which we don't ship; botocore speaks HTTP/1.1",
}

# What botocore may call for us: ours, and what makes credentials of a profile with `role_arn`. A
# profile that needs another service (SSO) gets botocore's UnknownServiceError.
OPERATIONS = {
    "events/2015-10-07": ("DescribeEventBus", "PutEvents"),
    "sts/2011-06-15": ("AssumeRole", "AssumeRoleWithWebIdentity"),
}
SHARED_DATA = ("_retry", "endpoints", "partitions", "sdk-default-configuration")

# Who signs for AWS's endpoints in most partitions: https://www.amazontrust.com/repository
AMAZON_ROOTS = r"Amazon Root CA [1-4]|Starfield Services Root Certificate Authority - G2"

LICENCES_OF = ("botocore", "jmespath", "python_dateutil", "shiv", "six", "urllib3")
LICENCES_HEAD = """\
tattle's own licence comes first, then the licences and notices of what is packed with it.
botocore/data holds only the part that tattle uses. No other file of theirs is changed.
"""


class Entry(NamedTuple):
    """One file of the archive."""

    name: str
    data: bytes
    deflated: bool = True


def only_operations(model: dict[str, Any], wanted: tuple[str, ...]) -> dict[str, Any]:
    """The service model with these operations and the shapes they reach, and without its prose."""
    operations = {name: model["operations"][name] for name in wanted}
    shapes: dict[str, Any] = {}
    todo: list[Any] = [operations]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            name = node.get("shape")
            if isinstance(name, str) and name not in shapes:
                shapes[name] = model["shapes"][name]
                todo.append(shapes[name])
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)
    kept = {**model, "operations": operations, "shapes": dict(sorted(shapes.items()))}
    return {key: without_prose(value) for key, value in kept.items() if key != "documentation"}


def without_prose(node: Any) -> Any:
    """The same JSON without `documentation` texts (anything else of that name is a member)."""
    if isinstance(node, list):
        return [without_prose(value) for value in node]
    if not isinstance(node, dict):
        return node
    return {
        key: without_prose(value)
        for key, value in node.items()
        if not (key == "documentation" and isinstance(value, str))
    }


def only_services(endpoints: dict[str, Any], wanted: set[str]) -> dict[str, Any]:
    """endpoints.json with all partitions, regions and defaults, but with these services only."""
    return {
        **endpoints,
        "partitions": [
            {**p, "services": {k: v for k, v in p["services"].items() if k in wanted}}
            for p in endpoints["partitions"]
        ],
    }


def data_files(data: Path) -> dict[str, Any]:
    """What botocore's loader reads for us in botocore/data, by name without suffix."""
    files = {name: json.loads((data / f"{name}.json").read_bytes()) for name in SHARED_DATA}
    services = {path.split("/")[0] for path in OPERATIONS}
    files["endpoints"] = only_services(files["endpoints"], services)
    for path, operations in OPERATIONS.items():
        for name in (f"{path}/service-2", f"{path}/endpoint-rule-set-1"):
            files[name] = json.loads(gzip.decompress((data / f"{name}.json.gz").read_bytes()))
        files[f"{path}/service-2"] = only_operations(files[f"{path}/service-2"], operations)
    return files


def stage(site_packages: Path, into: Path) -> None:
    """Copy the run-time packages, without what is left out, to a directory for shiv."""
    files = {
        path.relative_to(site_packages).as_posix(): path.read_bytes()
        for name in RUNTIME
        for path in (site_packages / name, *(site_packages / name).rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    for pattern in LEFT_OUT:
        matching = [name for name in files if fnmatch(name, pattern)]
        if not matching:
            sys.exit(f"pack: LEFT_OUT names {pattern}, but the locked packages have no such file")
        for name in matching:
            del files[name]
    for name, content in data_files(site_packages / "botocore" / "data").items():
        # Plain, where botocore has .json.gz: the archive compresses, and the loader takes either.
        files[f"botocore/data/{name}.json"] = json.dumps(content, separators=(",", ":")).encode()
    files.update(our_own())
    files["tattle/aws/amazon_roots.pem"] = amazon_roots(files["botocore/cacert.pem"])
    for name, data in files.items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        (into / name).write_bytes(data)


def amazon_roots(bundle: bytes) -> bytes:
    """Amazon's of the root certificates: OpenSSL 3 takes 15 ms to read all of Mozilla's."""
    pattern = rf'# Label: "(?:{AMAZON_ROOTS})"\n(?:#.*\n)+(-----BEGIN[^#]*-----END.*\n)'
    found = re.findall(pattern, bundle.decode())
    if len(found) != 5:
        sys.exit(f"pack: botocore's cacert.pem has {len(found)} of Amazon's five roots")
    return "".join(found).encode()


def from_shiv(staged: Path, archive: Path) -> list[Entry]:
    """What shiv makes of the staged packages, with our entry point in its place and first."""
    command = [sys.executable, "-Im", "shiv", "--reproducible", "--uncompressed"]
    command += ["-p", PYTHON, "-e", ENTRY_POINT, "-o", str(archive)]
    command += ["--site-packages", str(staged)]
    # Without SOURCE_DATE_EPOCH, --reproducible writes a fixed date into environment.json.
    environment = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"}
    subprocess.run(command, check=True, env=environment)
    with zipfile.ZipFile(archive) as made:
        names = sorted(name for name in made.namelist() if name != FIRST_MEMBER)
        build_id = json.loads(made.read("environment.json"))["build_id"]
        rest = [Entry(n, made.read(n), not fnmatch(n, OURS)) for n in names]
    return [first_member(build_id), *rest]


def first_member(build_id: str) -> Entry:
    """`__main__.py` for this build, padded by a comment to a size that all builds share."""
    source = (PACKAGE / FIRST_MEMBER).read_bytes()
    unset, filled = b'BUILD = "none"', f'BUILD = "{build_id}"'.encode()
    if source.count(unset) != 1:
        sys.exit(f"pack: no {unset.decode()} in {FIRST_MEMBER}")
    source = source.replace(unset, filled) + b"#"
    if len(source) >= FIRST_MEMBER_BYTES:
        sys.exit(f"pack: {FIRST_MEMBER} has {len(source)} bytes; raise FIRST_MEMBER_BYTES")
    return Entry(FIRST_MEMBER, source.ljust(FIRST_MEMBER_BYTES - 1, b"-") + b"\n", False)


def our_own() -> dict[str, bytes]:
    """Our package without the entry point, by path in site-packages/."""
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {
        f"tattle/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes()
        for path in files
        if path.name != FIRST_MEMBER
    }


def shebang() -> bytes:
    """The first line, which knows where the entry point begins and how long it is."""
    offset, line = 0, b""
    while offset != len(line) + 30 + len(
        FIRST_MEMBER
    ):  # a local file header has 30 bytes and the name
        offset = len(line) + 30 + len(FIRST_MEMBER)
        line = f"#!{SHEBANG}\n".encode() % (offset, FIRST_MEMBER_BYTES)
    if len(line) - 1 > SHEBANG_LIMIT:
        sys.exit(f"pack: a first line of {len(line) - 1} bytes; kernels take {SHEBANG_LIMIT}")
    return line


def licences(site_packages: Path) -> Entry:
    """One text with the licences of everything in the archive."""
    texts = [LICENCES_HEAD, (ROOT / "LICENSE").read_text("utf-8")]
    for package in LICENCES_OF:
        (info,) = site_packages.glob(f"{package}-*.dist-info")
        files = [file for file in sorted(info.rglob("*")) if re.match("LICENSE|NOTICE", file.name)]
        if not files:
            sys.exit(f"pack: there is no licence in {info.name}")
        texts += [f"{info.stem}: {file.name}\n\n{file.read_text('utf-8')}" for file in files]
    return Entry("LICENSES.txt", f"\n{'=' * 80}\n".join(texts).encode())


def deflate(data: bytes) -> bytes:
    """A raw deflate stream: zlib's (RFC 1950) without its header, 2 bytes, and its checksum, 4.

    All of it takes zopfli ten seconds, so every stream is kept for the next build.
    """
    kept = DEFLATED / hashlib.sha256(data).hexdigest()
    if not kept.exists():
        write(kept, zopfli.zlib.compress(data)[2:-4])
    packed = kept.read_bytes()
    if zlib.decompress(packed, wbits=-15) != data:
        raise ValueError(f"{kept} does not decompress to what was compressed")
    return packed


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file of this mode, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_bytes(content)
    new.chmod(mode)
    new.replace(path)


def zip_file(entries: list[Entry], before: bytes = b"") -> bytes:
    """A zip file, after what comes before. The entries: in this order, 0644, 1980-01-01 00:00."""
    version = 20  # 2.0: deflate
    made_by = 3 << 8 | version  # 3: Unix, so that external attributes hold a file mode
    attributes = 0o100644 << 16
    date = 1 << 5 | 1  # (year - 1980) << 9 | month << 5 | day
    body = bytearray(before)
    directory = bytearray()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        packed = list(pool.map(lambda e: deflate(e.data) if e.deflated else e.data, entries))
    for entry, data in zip(entries, packed):
        name = entry.name.encode("ascii")
        common = struct.pack("<5H", version, 0, 8 if entry.deflated else 0, 0, date)
        common += struct.pack("<3L", zlib.crc32(entry.data), len(data), len(entry.data))
        common += struct.pack("<2H", len(name), 0)
        directory += b"PK\1\2" + struct.pack("<H", made_by) + common
        directory += struct.pack("<3H2L", 0, 0, 0, attributes, len(body)) + name
        body += b"PK\3\4" + common + name + data
    end = struct.pack("<4H", 0, 0, len(entries), len(entries))
    end += struct.pack("<2LH", len(directory), len(body), 0)
    return bytes(body + directory + b"PK\5\6" + end)


def main() -> None:
    """Write dist/tattle and dist/tattle.sha256, and say what came out."""
    site_packages = Path(sysconfig.get_path("purelib"))
    with tempfile.TemporaryDirectory(prefix="tattle-pack-") as directory:
        staged = Path(directory, "site-packages")
        stage(site_packages, staged)
        entries = from_shiv(staged, Path(directory, "shiv"))
    entries.append(licences(site_packages))
    content = zip_file(entries, shebang())
    digest = hashlib.sha256(content).hexdigest()
    write(TARGET, content, 0o755)
    write(TARGET.with_name("tattle.sha256"), f"{digest}  tattle\n".encode())
    print(f"dist/tattle: {len(content)} bytes, {len(entries)} files, SHA-256 {digest}")


if __name__ == "__main__":
    main()
