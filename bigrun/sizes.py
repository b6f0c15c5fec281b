"""Sizes as people write them, both ways. The one place that knows what a GB is."""

import re
from fractions import Fraction

from bigrun.errors import CallError

# As accelerate reads them: the decimal units of the SI, and the binary ones of IEC 80000-13.
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([KMGT]?I?B)", re.IGNORECASE | re.ASCII)
LARGEST = 10**18
SMALLEST = 10**6  # bytes that a number without a unit can mean
LONGEST = 40  # characters of a size


def parse_size(text: str | int, what: str = "size") -> int:
    """Bytes of "24GB" (10⁹), "24GiB" (2³⁰), "500 MB", or of a whole number, which is bytes; CallError says what was meant.

    A text without a unit is refused, but for "0": who types 32 means GB.
    """
    bare = False
    how = "write it as 24GB (10^9 bytes) or 24GiB (2^30)"
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise CallError(f"{what}: {text!r:.40} is not a size; {how}")
    if isinstance(text, int):
        number = text
    elif len(text) > LONGEST:
        raise CallError(f"{what}: {text[:LONGEST]}… is out of range")
    elif match := SIZE.fullmatch(text.strip()):
        number = round(Fraction(match[1]) * UNITS[match[2].upper()])
    elif text.strip().isascii() and text.strip().isdigit():
        number = int(text)
        bare = number > 0
    else:
        raise CallError(f"{what}: {text!r} is not a size; {how}")
    if not 0 <= number <= LARGEST:
        raise CallError(f"{what}: {str(text)[:LONGEST] if isinstance(text, str) else 'that number'} is out of range")
    if bare:
        raise CallError(f"{what}: {text.strip()} lacks a unit; write {with_unit(number)}")  # type: ignore[union-attr]
    return number


def with_unit(number: int) -> str:
    """A number as whoever left out its unit may have meant it: a few GB, or bytes."""
    return f"{number}GB" if number < SMALLEST else f"{number}B"


def format_apart(one: int, other: int) -> tuple[str, str]:
    """Both sizes as `format_size` has them; in bytes where it would make two of one."""
    words = format_size(one), format_size(other)
    return (f"{one:,} bytes", f"{other:,} bytes") if words[0] == words[1] and one != other else words


def format_size(count: float) -> str:
    """Three significant figures in decimal units: 2.47 GB, 60.0 MB, 512 B."""
    sign, count = ("-", -count) if count < 0 else ("", count)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            digits = 0 if unit == "B" else max(0, 3 - len(str(int(count))))
            return f"{sign}{count:.{digits}f} {unit}"
        count /= 1000
    raise AssertionError("unreachable: the last unit takes every size")
