"""What a user did or met, as opposed to a defect: the command line prints these as one line."""


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
