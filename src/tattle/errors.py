"""One kind of error: message, exit status, advice."""

from __future__ import annotations


class TattleError(Exception):
    """A fault that a person can act on. status is one of os.EX_*."""

    def __init__(self, message: str, status: int, advice: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.advice = advice
