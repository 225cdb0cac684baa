"""Names that users type."""

import re
from collections.abc import Iterable

from common.errors import ArgumentError


def slug(name: str) -> str:
    """A name as part of a file name.

    Example:
        >>> slug("SCGC*"), slug("Autoencoder + k-means")
        ('scgc-star', 'autoencoder-k-means')
    """
    words = re.sub(r"[^a-z0-9]+", "-", name.lower().replace("*", " star "))
    return words.strip("-")


def one_of(kind: str, name: str, valid: Iterable[str]) -> str:
    """The entry of ``valid`` that ``name`` means: itself, or the one with the same slug.

    Raises:
        ArgumentError: there is none; the message has the closest match and all that are valid.

    Example:
        >>> one_of("row", "scgc-star", ["SCGC", "SCGC*"])
        'SCGC*'
        >>> one_of("data set", "acn", ["acm", "usps"])
        Traceback (most recent call last):
        common.errors.ArgumentError: unknown data set 'acn', did you mean 'acm'? known: acm, usps
    """
    names = list(valid)
    if name in names:
        return name
    for candidate in names:
        if slug(candidate) == slug(name):
            return candidate

    from difflib import get_close_matches

    slugs = {slug(candidate): candidate for candidate in names}
    close = get_close_matches(slug(name), slugs, n=1, cutoff=0.5)
    hint = f", did you mean {slugs[close[0]]!r}?" if close else ";"
    raise ArgumentError(f"unknown {kind} {name!r}{hint} known: {', '.join(names) or 'none'}")
