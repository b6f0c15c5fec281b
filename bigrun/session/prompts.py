"""From a prompt to the token ids of a request: the one way in for text, chats and ids, with what each is checked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bigrun.errors import CallError

if TYPE_CHECKING:
    from bigrun.text.tokenizer import Tokenizer

# What a run will do with text, tried before the first weight is fetched: (tokenizer, rows of the embedding table, context).
TextCheck = Callable[["Tokenizer", int, int], object]


def prompt_ids(tokenizer: Tokenizer, prompt: str, raw: bool, table: int, context: int) -> list[int]:
    """Token ids of a prompt: as it is where `raw`, otherwise as the user's turn of the model's chat template, if it has one.

    CallError where it is empty, has a token beyond the `table`'s rows, or leaves no room in the `context` for an answer.
    """
    if not prompt:
        raise CallError("the prompt is empty: give --prompt TEXT, or text on standard input")
    if raw or tokenizer.chat_template is None:
        ids = tokenizer.encode(prompt)
    else:  # as transformers' apply_chat_template: a template writes its own BOS, or there is none
        ids = tokenizer.encode(tokenizer.render_chat([{"role": "user", "content": prompt}]), add_bos=False)
    if len(ids) >= context:
        raise CallError(f"the prompt has {len(ids)} tokens and the context {context}: shorten it, or give --context")
    return checked_ids(ids, table, context, tokenizer)


def checked_ids(ids: Sequence[int] | Any, table: int, context: int, tokenizer: Tokenizer | None = None) -> list[int]:
    """Token ids as a list; CallError where there are none, too many for the `context`, or one beyond the `table`'s rows."""
    result = [int(token) for token in ids]
    if not result:
        raise CallError("the prompt is empty: give at least one token")
    for token in result:
        if not 0 <= token < table:
            text = "" if tokenizer is None else f" ({tokenizer.token(token)!r:.40})"
            raise CallError(
                f"token id {token}{text} is outside the vocabulary: the embedding table has {table} rows; leave it out, or "
                "take the tokenizer that belongs to the model"
            )
    if len(result) > context:
        raise CallError(f"{len(result)} tokens do not fit the context of {context}: give a larger context")
    return result
