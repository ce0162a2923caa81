"""How long to go on where nothing arrives, and how that ends."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from gptfast_cli.core.errors import NetworkError
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.transfer.remote import PassingError, UnreachableError

T = TypeVar("T")

_AGAIN = "What arrived is kept: give the same command again, and it goes on from there."


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on where nothing arrives.

    n_attempts:      in a row that bring nothing new, before it ends
    first_seconds:   to wait after the first; doubled each time, up to `longest_seconds`
    longest_asked_seconds: that a server may ask to wait; beyond, the person is told instead
    """

    n_attempts: int = 6
    first_seconds: float = 0.5
    longest_seconds: float = 15.0
    longest_asked_seconds: float = 300.0

    def wait_seconds(self, n_failed: int, fault: PassingError) -> float | None:
        """How long to wait after so many attempts in vain; None where it is time to give up."""
        if n_failed >= self.n_attempts:
            return None
        if fault.wait_seconds is not None:
            return fault.wait_seconds if fault.wait_seconds <= self.longest_asked_seconds else None
        seconds = min(self.longest_seconds, self.first_seconds * 2.0 ** (n_failed - 1))
        return seconds * random.uniform(0.75, 1.25)  # noqa: S311  # so that not all come back at once


def patiently(what: str, patience: Patience, call: Callable[[], T]) -> Job[T]:
    """What a call gives, again after faults that may pass; raises NetworkError where they do not."""
    n_failed = 0
    while True:
        try:
            return call()
        except PassingError as fault:
            n_failed += 1
            seconds = patience.wait_seconds(n_failed, fault)
            if seconds is None:
                raise given_up(what, fault) from None
            if seconds >= 1:
                yield Note(f"{what}: {fault.reason}; again in {seconds:.0f} s.")
            time.sleep(seconds)


def given_up(what: str, fault: PassingError) -> NetworkError:
    """The error that ends a series of faults."""
    if isinstance(fault, UnreachableError):
        return NetworkError(f"{what}: {fault.reason}.", f"Check the network, the proxy settings and {fault.setting}.")
    if fault.wait_seconds is not None:
        return NetworkError(
            f"{what}: {fault.reason}.", f"Give the same command again in {fault.wait_seconds:.0f} s: it goes on."
        )
    return NetworkError(f"{what}: {fault.reason}.", _AGAIN)
