"""Messages of a conversation, from a file or a caller: checked, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from bigrun.errors import CallError

FORM = 'messages are a list like [{"role": "user", "content": "Hello"}]'


def checked_messages(messages: Iterable[Any]) -> list[dict[str, Any]]:
    """Messages with a role and a content that are texts. CallError for anything else."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise CallError(f"that is no conversation: {FORM}")
    checked = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise CallError(f"message {number} is no object: {FORM}")
        for name in ("role", "content"):
            if name == "content":
                message = {**message, name: _text_of(message.get(name))}
            if not isinstance(message.get(name), str):
                raise CallError(f"message {number} has no {name} that is a text: {FORM}")
        checked.append(_plain(message, number))
    return checked


def _text_of(content: Any) -> Any:
    """The text of a content that is a list of parts of text, [{"type": "text", "text": "Hello"}]; else what it is."""
    if isinstance(content, list) and content:
        parts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content
        ]
        if all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
        raise CallError("a message's content has parts that are no text: images and sound are not supported")
    return content


def _plain(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A copy in which there are JSON's types alone, so that a chat template reaches no other object's methods."""
    for name, value in message.items():
        try:
            same = isinstance(name, str) and json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError, RecursionError):
            same = False
        if not same:
            raise CallError(f"message {number}: what it has as {str(name)[:40]!r} is not JSON")
    plain: dict[str, Any] = json.loads(json.dumps(dict(message)))
    return plain


def messages_from_json(text: str, where: str) -> list[dict[str, Any]]:
    """The messages of a file: a JSON list of them, or an object that has it as "messages". CallError says `where`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CallError(f"{where}: not JSON: {error}; {FORM}") from error
    if isinstance(value, dict) and "messages" in value:
        value = value["messages"]
    try:
        return checked_messages(value)
    except CallError as error:
        raise CallError(f"{where}: {error}") from error


def messages_as_json(messages: Iterable[Mapping[str, Any]]) -> str:
    """Messages as a JSON list, one a line."""
    lines = (json.dumps(dict(message), ensure_ascii=False) for message in messages)
    return "[\n" + ",\n".join(f"  {line}" for line in lines) + "\n]\n"
