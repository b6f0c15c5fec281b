"""Conversations as files: a JSON list of messages, or an object with that list as its "messages"."""

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from stat import S_IMODE, S_ISREG
from typing import Any

from bigrun.cli.prompt import read_file
from bigrun.errors import CallError

Message = dict[str, Any]
FORM = '[{"role": "user", "content": "Hello"}]'


def read_messages(file: str, where: str) -> list[Message]:
    """The messages of a file; `where` names it (`--messages talk.json`) in the CallError for what cannot be read, is no JSON
    or holds anything but messages with the text of a role and of a content."""
    return _messages(_parsed(read_file(file, where), where), where)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise CallError(f"{where}: not JSON: {error.msg} ({place}); a conversation is like {FORM}") from error
    except (RecursionError, ValueError) as error:  # brackets without end, a number of thousands of digits
        raise CallError(f"{where}: not JSON that can be read; a conversation is like {FORM}") from error


def _messages(value: Any, where: str) -> list[Message]:
    if isinstance(value, dict):
        value = value.get("messages")
    if not isinstance(value, list):
        raise CallError(f"{where}: no list of messages: a conversation is like {FORM}")
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise CallError(f"{where}: message {number} is no object: a conversation is like {FORM}")
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                what = "is not a text" if name in message else "is missing"
                raise CallError(f"{where}: message {number}: its {name} {what}: a conversation is like {FORM}")
    return value


def write_messages(file: str, messages: list[Message], where: str) -> Path:
    """Writes a conversation, whole or not at all, and returns the file's path. CallError where it cannot be written, or where
    something lies there that is no conversation, which stays as it is."""
    try:
        path = Path(os.path.realpath(Path(file).expanduser()))  # of a link what it leads to is replaced
        mode = _replaceable(path, where)
        _replace(path, _encoded(messages), mode)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, a user that is not there
        raise CallError(f"{where}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    return path


def _encoded(messages: list[Message]) -> bytes:
    try:
        return (json.dumps(messages, ensure_ascii=False, indent=1) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only escape
        return (json.dumps(messages, indent=1) + "\n").encode()


def _replaceable(path: Path, where: str) -> int | None:
    """The mode of the file that is there, None where there is none; CallError for one whose loss would be one."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not S_ISREG(status.st_mode):
        raise CallError(f"{where}: there is something else than a file: name another")
    if status.st_size:
        try:
            there = _parsed(read_file(str(path), where), where)
            _messages(there, where)
        except CallError as error:
            raise CallError(f"{where}: the file that is there holds no conversation and stays: name another") from error
        if isinstance(there, dict) and len(there) > 1:
            raise CallError(f"{where}: the file that is there holds more than messages and stays: name another")
    return S_IMODE(status.st_mode)


def _replace(path: Path, data: bytes, mode: int | None) -> None:
    written = path.with_name(f".bigrun-{secrets.token_hex(8)}")
    try:
        with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as stream:
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(written, path)
    except BaseException:
        with suppress(OSError):
            written.unlink()
        raise
