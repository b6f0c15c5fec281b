"""Values out of files that strangers wrote, checked for size and type; a failure is one line that names the place."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bigrun.errors import TokenizerError

MAX_FILE_BYTES = 64 << 20  # the largest tokenizer.json in use has 33 MB
MAX_OBJECT_BYTES = 8 << 20  # of the other files; the largest have a tenth
KERNEL = ("/proc/", "/sys/")
POINTER = b"version https://git-lfs.github.com/spec/"  # what Git has in place of a large file until it is fetched

T = TypeVar("T")


def read_text(path: Path, most: int = MAX_FILE_BYTES) -> str | None:
    """The file's text, None where there is no such file. Raises TokenizerError."""
    data = read_bytes(path, most)
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8: byte {error.start}") from error


def read_bytes(path: Path, most: int) -> bytes | None:
    """What the file holds, None where there is no such file. Raises TokenizerError."""
    try:
        if not os.path.lexists(path) or (path.is_symlink() and not path.exists()):
            return None
        data = _bytes(path, most)
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error
    if data.startswith(POINTER):
        raise TokenizerError(f"{path} is a Git LFS pointer in place of the file: fetch it with `git lfs pull`")
    return data


def _bytes(path: Path, most: int) -> bytes:
    """What a regular file holds, through links too, but none of the kernel's files; at most so many bytes."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or os.path.realpath(f"/proc/self/fd/{handle}").startswith(KERNEL):
            raise TokenizerError(f"{path} is not a file")
        if status.st_size > most:
            raise TokenizerError(f"{path} has {status.st_size} bytes; the most that is read is {most}")
        return stream.read(status.st_size)  # so much is allocated at once


def read_object(path: Path, most: int = MAX_OBJECT_BYTES) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is no such file. Raises TokenizerError."""
    text = read_text(path, most)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a {type(value).__name__}, not an object")
    return value


@contextmanager
def building(what: str) -> Iterator[None]:
    """Turns whatever the tokenizers library has against a vocabulary into a TokenizerError."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError | GeneratorExit):
            raise
        raise TokenizerError(f"{what} is not a tokenizer: {' '.join(str(error).split())[:200]}") from error


def field(fields: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """`fields[name]` if it is there and not null. Raises TokenizerError where it is of another type."""
    value = fields.get(name)
    if value is not None and not isinstance(value, kind):
        raise TokenizerError(f"{name} is {value!r:.80}; it must be of type {kind.__name__}")
    return value


def array(fields: Mapping[str, Any], name: str, kind: type[T]) -> list[T]:
    """The list or numpy array at `name`. Raises TokenizerError where it is missing or not all of `kind`."""
    value = fields.get(name)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise TokenizerError(f"{name} {'is missing' if value is None else f'is not a list of {kind.__name__}'}")
    return value


def token_ids(value: object, name: str, limit: int = 1 << 32) -> list[int]:
    """One id, a list of them, or null; -1 stands for none. Raises TokenizerError for anything else, and from `limit` on."""
    ids = [index for index in (value if isinstance(value, list) else [value]) if index is not None and index != -1]
    checked = [index for index in ids if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < limit]
    if len(checked) != len(ids):
        raise TokenizerError(f"{name} is {value!r:.80}; a token id is a whole number from 0 to {limit - 1}")
    return checked


def token_text(config: Mapping[str, Any], name: str) -> str | None:
    """A special token of tokenizer_config.json: its text, or an object whose "content" is the text."""
    value = config.get(name)
    return field(value, "content", str) if isinstance(value, dict) else field(config, name, str)


def default_template(config: Mapping[str, Any]) -> str | None:
    """The chat template of tokenizer_config.json: its text, or the one called "default" of a list or an object."""
    value = config.get("chat_template")
    if isinstance(value, dict):
        return field({"chat_template": value.get("default")}, "chat_template", str)
    if isinstance(value, list):
        named = {str(entry.get("name")): entry.get("template") for entry in value if isinstance(entry, dict)}
        return field({"chat_template": named.get("default")}, "chat_template", str)
    return field(config, "chat_template", str)
