"""Where the time goes from a hook to its event's arrival, where no deliverer is there yet.

The deliverer's steps, one after the other in a fresh process of its kind, in a throwaway instance,
with EventBridge's certificate checked against botocore's own 130 roots and the stand-in's. Needs
root. By hand: `python tests/bench/stages.py [ROUNDS]`.

Then what was taken out of that time, measured by putting it back: artifacts with one thing undone
deliver in turns with the real one.
"""

from __future__ import annotations

import gzip
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.delivery import CA, ROOTS, rest
from standins.instance import SYSTEM_PYTHON, TATTLE, Instance
from support import ARTIFACT, repacked

ROUNDS = 15

STEPS = f"""\
import gc, json, sys, time
gc.disable()
began, took = time.perf_counter(), {{}}

def step(name):
    global began
    now = time.perf_counter()
    took[name] = now - began
    began = time.perf_counter()

sys.argv = [{TATTLE!r}]
sys.path.insert(0, {TATTLE!r} + "/site-packages")
from tattle.unpack import unpack
unpack()
step("to find what is unpacked")
import tattle.delivery.deliver
step("to import tattle's modules")
import botocore.session
step("to import botocore's")
from tattle.delivery.config import Config
from tattle.delivery.events import Publisher
publisher = Publisher(Config(), 5.0)
step("to make a client and ask IMDS for the identity")
from tattle.login.pam import parse
session = parse(b"PAM_TYPE=open_session\\0PAM_USER=u\\0", {{"TATTLE_TIME": str(time.time_ns())}})
entry = publisher.entry(session, bool)
assert not publisher.publish([entry])[0].error
step("to ask IMDS for the role, connect, and send")
import ssl
ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations({CA!r})
step("  … of that to read 130 roots")
publisher.publish([entry])
step("to send again")
json.dump(took, sys.stdout)
"""


def rows(rounds: int = ROUNDS) -> list[tuple[str, str]]:
    """The steps, and their medians."""
    taken: dict[str, list[float]] = {}
    with Instance(ARTIFACT) as box:
        box.write(CA, ROOTS.read_text() + box.ca.pem.decode())
        for number in range(rounds + 1):
            done = box.run([SYSTEM_PYTHON, "-ISXutf8", "-c", STEPS], check=True)
            if number:  # the first unpacks
                for step, seconds in json.loads(done.stdout).items():
                    taken.setdefault(step, []).append(seconds)
    return [(step, f"{1000 * statistics.median(all_):.1f} ms") for step, all_ in taken.items()]


def with_whole_data(name: str, content: bytes) -> bytes:
    original = ROOTS.parent / name.replace("site-packages/botocore/", "")
    if name.endswith("data/endpoints.json"):
        return original.read_bytes()
    if name.endswith("events/2015-10-07/service-2.json"):
        return gzip.decompress(original.with_suffix(".json.gz").read_bytes())
    return content


def not_compiled(name: str, content: bytes) -> bytes:
    if name.endswith("tattle/unpack.py"):
        assert COMPILE in content
        return content.replace(COMPILE, b"(lambda *_, **__: None)(")
    return content


COMPILE = b"compileall.compile_dir("
VARIANTS: Mapping[str, Callable[[str, bytes], bytes]] = {
    "from hook to arrival": lambda name, content: content,
    "  … with all of botocore's endpoint data and operations": with_whole_data,
    "  … with all modules compiled at each delivery": not_compiled,
}


def savings(rounds: int = ROUNDS) -> list[tuple[str, str]]:
    """The variants, and the medians from a hook's start to the event's arrival."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tattle-bench-")))
        boxes = []
        for number, change in enumerate(VARIANTS.values()):
            repacked(ARTIFACT, folder / f"{number}", change)
            boxes.append(stack.enter_context(Instance(folder / f"{number}")))
        sessions = [stack.enter_context(box.session()) for box in boxes]
        taken: list[list[float]] = [[] for _ in boxes]
        for number in range(rounds + 1):
            for box, session, own in zip(boxes, sessions, taken):
                rest(box)
                count = len(box.eventbridge.entries())
                began = session.hook().started
                arrived = box.eventbridge.wait_for(count + 1, 30)[-1].arrived
                if number:  # the first unpacks
                    own.append(arrived - began)
    return [(what, f"{1000 * statistics.median(own):.0f} ms") for what, own in zip(VARIANTS, taken)]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    for what, median in (*rows(rounds), *savings(rounds)):
        print(f"{what:<58}{median:>16}")


if __name__ == "__main__":
    main()
