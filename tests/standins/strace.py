"""strace, which lists a process's system calls, and fails or kills it at one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

UNFINISHED, RESUMED = " <unfinished ...>", " resumed>"


@dataclass(frozen=True)
class Call:
    """The nth call of that name."""

    name: str
    nth: int
    line: str
    """As strace prints it."""

    def __str__(self) -> str:
        return f"{self.name}-{self.nth}"

    def inject(self, what: str, from_then_on: bool = False) -> list[str]:
        """strace's options that have it fail, or kill the process."""
        when = f"{self.nth}+" if from_then_on else self.nth
        return ["-e", f"trace={self.name}", "-e", f"inject={self.name}:{what}:when={when}"]

    def kill(self) -> list[str]:
        return self.inject("signal=KILL")


def calls_in(trace: str) -> list[Call]:
    """The calls of one process, in their order."""
    counts: Counter[str] = Counter()
    calls = []
    for line in trace.splitlines():
        name, bracket, _ = line.partition("(")
        if bracket and name.isidentifier():
            counts[name] += 1
            calls.append(Call(name, counts[name], line))
    return calls


def joined(trace: str) -> str:
    """The calls of several processes or threads (-f), each in one line, whatever came between."""
    begun: dict[str, str] = {}
    lines = []
    for line in trace.splitlines():
        thread, _, call = line.partition(" ")
        if call.endswith(UNFINISHED):
            begun[thread] = call[: -len(UNFINISHED)]
        elif RESUMED in call:
            lines.append(begun.pop(thread, "") + call.partition(RESUMED)[2])
        else:
            lines.append(call)
    return "\n".join(lines)


def strace(options: Sequence[str], output: str = "/dev/null") -> list[str]:
    """The tracer's command, without following forks; -D: the hook stays its parent's child."""
    return ["/usr/bin/strace", "-D", "-o", output, *options, "--"]
