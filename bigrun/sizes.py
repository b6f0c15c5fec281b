"""Sizes as people write them, both ways. The one place that knows what a GB is."""

import math
import re

from bigrun.errors import CallError

# As accelerate reads them: the decimal units of the SI, and the binary ones of IEC 80000-13.
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([KMGT]?I?B)", re.IGNORECASE | re.ASCII)
LARGEST = 10**18


def parse_size(text: str | int, what: str = "size") -> int:
    """Bytes of "24GB" (10⁹), "24GiB" (2³⁰), "500 MB" or a plain number of bytes; CallError says what was meant."""
    if isinstance(text, bool):
        raise CallError(f"{what}: {text!r} is not a size; write it as 24GB or 24GiB")
    if isinstance(text, int):
        number = float(min(text, 2 * LARGEST))
    elif match := SIZE.fullmatch(text.strip()):
        number = float(match[1][:40]) * UNITS[match[2].upper()]
    elif text.strip().isascii() and text.strip().isdigit() and len(text) < 24:
        number = float(int(text))
    else:
        raise CallError(f"{what}: {text!r} is not a size; write it as 24GB (10^9 bytes) or 24GiB (2^30)")
    if not 0 <= number <= LARGEST or math.isnan(number):
        raise CallError(f"{what}: {text!r} is out of range")
    return round(number)


def format_size(count: float) -> str:
    """At most four significant figures in decimal units: 2.466 GB, 60 MB, 512 B."""
    sign, count = ("-", -count) if count < 0 else ("", count)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            digits = 0 if unit == "B" else max(0, 3 - len(str(int(count))))
            return f"{sign}{count:.{digits}f} {unit}"
        count /= 1000
    raise AssertionError("unreachable: the last unit takes every size")
