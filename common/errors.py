"""What a user did or met, as opposed to a defect: the command line prints these as one line."""

from contextlib import suppress
from operator import index
from typing import Any


class ClustrastError(Exception):
    """Base of the errors a user can act on: names the thing, what came and what was expected."""


class ArgumentError(ClustrastError, ValueError):
    """An argument out of its range: names the argument, the value and what is allowed."""


class DataError(ClustrastError):
    """A data set that is missing, incomplete, damaged or not what its loader can read."""


class RunError(ClustrastError):
    """A run folder, record or lock that cannot be used as asked."""


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raises an :class:`ArgumentError` that names the argument unless ``condition`` holds.

    Example:
        >>> require(0 >= 1, "order", 0, "at least 1")
        Traceback (most recent call last):
        common.errors.ArgumentError: order must be at least 1, got 0
    """
    if not condition:
        raise ArgumentError(f"{name} must be {expected}, got {value!r}")


def require_int(name: str, value: Any, lowest: int, highest: int | None = None) -> int:
    """``value`` as an int, if it is an integer of any type but bool, and in its range.

    Raises:
        ArgumentError: names the argument, what came and what was expected.

    Example:
        >>> require_int("order", 2.5, 1)
        Traceback (most recent call last):
        common.errors.ArgumentError: order must be an integer of at least 1, got 2.5
    """
    number = None
    with suppress(TypeError):
        number = index(value)
    too_high = number is not None and highest is not None and number > highest
    if number is None or isinstance(value, bool) or number < lowest or too_high:
        range_ = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise ArgumentError(f"{name} must be an integer {range_}, got {value!r}")
    return number
