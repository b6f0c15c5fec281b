"""The prompt of a command: its option's text, a file's, or standard input's."""

import sys
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import BinaryIO

from bigrun.errors import CallError

MOST_BYTES = 64 * 1024 * 1024  # several times what the longest contexts hold; a device without an end stops here
HOW = "give --prompt TEXT, --prompt-file FILE, or text on standard input"


def read_prompt(prompt: str | None, file: str | None) -> str:
    """The text to continue: `prompt` as it is, else what `file` holds ("-": standard input), else standard input.

    Of a file and of standard input the line's end that an editor or `echo` puts last is no part of the prompt, nor is a
    byte-order mark. CallError where both are given, neither is, or it is empty, too long or not UTF-8.
    """
    if prompt is not None and file is not None:
        raise CallError("--prompt and --prompt-file: give one of them")
    if prompt is None:
        if file is None and (sys.stdin is None or sys.stdin.isatty()):
            raise CallError(f"no prompt: {HOW}")
        prompt = _standard_input() if file in (None, "-") else read_file(str(file), f"--prompt-file {file}")
    if not prompt.strip():
        raise CallError(f"the prompt is empty: {HOW}")
    return prompt


def _standard_input() -> str:
    if sys.stdin is None:
        raise CallError(f"standard input is closed: {HOW}")
    try:
        return read_utf8(sys.stdin.buffer, "standard input")
    except OSError as error:  # its terminal or device is gone
        raise CallError(f"standard input: cannot be read: {error.strerror}") from error


def read_file(file: str, where: str) -> str:
    """The text of a file, as `read_utf8` reads it; ~ is the user's home."""
    try:
        with Path(file).expanduser().open("rb") as stream:
            return read_utf8(stream, where)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, a user that is not there
        raise CallError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_utf8(stream: BinaryIO, where: str) -> str:
    """What a stream holds, without its byte-order mark and its last line's end; `where` names it in a CallError."""
    data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise CallError(f"{where}: more than {MOST_BYTES // 1024**2} MiB: no context holds that")
    start = len(BOM_UTF8) if data.startswith(BOM_UTF8) else 0
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = start + error.start
        utf16 = data.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
        what = "it looks like UTF-16" if utf16 else f"byte {at} is 0x{data[at]:02x}"
        raise CallError(f"{where}: not UTF-8 text: {what}; convert it, as with iconv -t UTF-8") from error
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
