"""Where the time goes from a hook to its event's arrival, where no deliverer is there yet.

The deliverer's steps, one after the other in a fresh process of its kind, in a throwaway instance,
with EventBridge's certificate checked against botocore's own 130 roots and the stand-in's. Needs
root. By hand: `python tests/bench/stages.py [ROUNDS]`.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.delivery import CA, ROOTS
from instance import SYSTEM_PYTHON, TATTLE, Instance
from support import ARTIFACT

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

sys.path.insert(0, {TATTLE!r})
from tattle.unpack import unpack
unpack()
step("to find what is unpacked")
import tattle.deliver
step("to import tattle's modules")
import botocore.session
step("to import botocore's")
from tattle.config import Config
from tattle.events import Publisher
publisher = Publisher(Config(), 3, 5.0)
step("to make a client and ask IMDS for the identity")
from tattle.session import parse
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


def main() -> None:
    for step, median in rows(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS):
        print(f"{step:<58}{median:>16}")


if __name__ == "__main__":
    main()
