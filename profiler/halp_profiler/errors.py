"""Errors that say what is wrong, why, and what to do about it, in one line."""

from __future__ import annotations


class HalpError(Exception):
    """Base of every error that a user may meet.

    Args:
        what: what could not be done.
        why: the cause, with the offending name and value.
        remedy: what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, why: str, remedy: str) -> None:
        self.what, self.why, self.remedy = what, why, remedy
        super().__init__(f"{what}: {why.rstrip('.')}. {remedy.rstrip('.')}.")


class UsageError(HalpError):
    """An argument cannot be understood."""

    exit_code = 2


class TableError(HalpError):
    """A latency table is missing, broken, or for something else."""


class DeviceError(HalpError):
    """The device, or the runtime that reaches it, is not there."""

    exit_code = 3


class UnstableError(HalpError):
    """The measurement is too unsteady to be believed."""

    exit_code = 3
