"""Output in whatever encoding a terminal or pipe has: what it has no letter for is replaced, and nothing fails by it."""

import codecs
import json
import sys
from contextlib import suppress
from typing import Any

HANDLER = "bigrun"
# What stands for our own signs where they cannot be shown; anything else becomes a question mark.
STAND_INS = {"█": "#", "▓": "=", "▒": "+", "░": "-", "·": ".", "…": "...", "→": "->", "×": "x", "⁹": "^9", "⁰": "^0"}


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """An encoder's error handler. Halves of surrogate pairs (bytes of file names that are no UTF-8) are escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    shown = (STAND_INS.get(c, repr(c)[1:-1] if "\ud800" <= c <= "\udfff" else "?") for c in unknown)
    return "".join(shown), error.end


codecs.register_error(HANDLER, _replaced)


def encodable_streams() -> None:
    """Have standard output and standard error replace what their encodings lack, unless the user chose how (as by
    PYTHONIOENCODING=ascii:ignore)."""
    for stream, usual in ((sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
        # which Python itself takes in the locale C
        if getattr(stream, "errors", None) in (usual, "surrogateescape") and hasattr(stream, "reconfigure"):
            with suppress(OSError, ValueError):  # closed
                stream.reconfigure(errors=HANDLER)


def readable_json(value: Any) -> str:
    """JSON of one line that keeps letters of all scripts, with what a terminal would obey escaped; all that is not ASCII is,
    where standard output cannot encode them all."""
    text = json.dumps(value, ensure_ascii=False)
    text = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
