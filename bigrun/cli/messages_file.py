"""Conversations as files, for `bigrun chat`: read with limits, written whole or not at all."""

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from stat import S_IMODE, S_ISREG
from typing import Any

from bigrun.cli.prompt import read_file
from bigrun.errors import CallError
from bigrun.session.messages import messages_as_json, messages_from_json


def read_messages(file: str, where: str) -> list[dict[str, Any]]:
    """The messages of a file; `where` names it (`--messages talk.json`) in the CallError for what cannot be read or is no
    conversation."""
    return messages_from_json(read_file(file, where), where)


def write_messages(file: str, messages: list[dict[str, Any]], where: str) -> Path:
    """Writes a conversation, whole or not at all, and returns the file's path. CallError where it cannot be written, or where
    something lies there that is no conversation, which stays as it is."""
    try:
        path = Path(os.path.realpath(Path(file).expanduser()))  # of a link what it leads to is replaced
        mode = _replaceable(path, where)
        _replace(path, _encoded(messages), mode)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, a user that is not there
        raise CallError(f"{where}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    return path


def _encoded(messages: list[dict[str, Any]]) -> bytes:
    try:
        return messages_as_json(messages).encode()
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
            text = read_file(str(path), where)
            messages_from_json(text, where)
        except CallError as error:
            raise CallError(f"{where}: the file that is there holds no conversation and stays: name another") from error
        there = json.loads(text)
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
