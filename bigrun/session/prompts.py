"""From a prompt to the token ids of a request: the one way in for text, messages and ids, with what each is checked for."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bigrun.errors import CallError, ContextFull, shortly
from bigrun.session.messages import checked_messages

if TYPE_CHECKING:
    from bigrun.text.tokenizer import Tokenizer

Message = Mapping[str, Any]  # {"role": "user", "content": "Hello"}, and what else a chat template reads
Prompt = str | Sequence[int] | Sequence[Message]

MANY = ("texts", "conversations")  # of `read_prompt`: several prompts

# What a run will do with text, tried before the first weight is fetched: (tokenizer, rows of the embedding table, context).
TextCheck = Callable[["Tokenizer", int, int], object]


def one_prompt(prompt: Any) -> Any:
    """One prompt: a text, or its token ids or messages as a list. CallError for anything else."""
    kind, value = read_prompt(prompt)
    if kind in MANY:
        raise CallError("one prompt is taken here: a text, token ids, or one list of messages; generate takes several")
    return value


def read_prompt(prompt: Any) -> tuple[str, Any]:
    """(what it is, itself): a text, or the tokens, messages, texts or conversations as lists, though they come from what can be
    read once. CallError for anything else, and for an empty list."""
    if isinstance(prompt, str):
        return "text", prompt
    items = [_listed(item) for item in _items(prompt)]
    kinds = {_kind(item) for item in items}
    if not items:
        raise CallError("there is no prompt: the list is empty")
    single = {"token": "tokens", "message": "messages", "text": "texts", "messages": "conversations"}
    if len(kinds) > 1:
        raise CallError(f"a list of prompts is of one kind, and this one has {' and '.join(sorted(kinds))}")
    if (kind := kinds.pop()) in single:
        return single[kind], items
    if kind == "tokens":
        what = "one prompt's token ids are a list of whole numbers, not a list that holds it"
        raise CallError(f"{what}: give ids[0]; several prompts are given as texts or as conversations")
    raise CallError(_not_a_prompt(items[0], "a list of "))


def prompt_ids(
    tokenizer: Tokenizer, prompt: str | Sequence[Message], raw: bool, table: int, context: int,
    template_args: Mapping[str, Any] | None = None,
) -> list[int]:  # fmt: skip
    """Token ids of a prompt: of a text as it is where `raw`, otherwise as the user's turn of the model's chat template, if it
    has one; of messages by that template.

    CallError where it is empty, has a token beyond the `table`'s rows, or leaves no room in the `context` for an answer.
    """
    if not prompt:
        raise CallError("the prompt is empty: give some text")
    messages = None if isinstance(prompt, str) else list(prompt)
    if messages is not None and raw:
        raise CallError(
            "--raw: messages become a prompt by the model's chat template alone; give a text, or leave --raw out"
        )
    if isinstance(prompt, str) and (raw or tokenizer.chat_template is None):
        if template_args:
            why = "--raw does without" if raw else "the model has none"
            raise CallError(
                f"template argument {next(iter(template_args))!r:.40}: it is for a chat template, and {why}"
            )
        ids = tokenizer.encode(prompt)
    else:  # as transformers' apply_chat_template: a template writes its own BOS, or there is none
        said = [{"role": "user", "content": prompt}] if messages is None else checked_messages(messages)
        ids = tokenizer.encode(rendered(tokenizer, said, template_args), add_bos=False)
    if len(ids) >= context:
        raise ContextFull(len(ids), context)
    return checked_ids(ids, table, context, tokenizer)


def rendered(tokenizer: Tokenizer, messages: list[dict[str, Any]], template_args: Mapping[str, Any] | None) -> str:
    """A conversation as the text that the model's chat template makes of it. CallError where there is none, or it refuses the
    messages or does not read one of the `template_args`."""
    return tokenizer.render_chat(messages, arguments=template_args or None)


def checked_ids(ids: Sequence[int] | Any, table: int, context: int, tokenizer: Tokenizer | None = None) -> list[int]:
    """Token ids as a list; CallError where there are none, too many for the `context`, or one that is no whole number or beyond
    the `table`'s rows."""
    try:
        result = [operator.index(token) for token in ids]
    except TypeError as error:
        raise CallError("token ids are whole numbers in one list; give text as a text") from error
    if not result:
        raise CallError("the prompt is empty: give at least one token")
    for token in result:
        if not 0 <= token < table:
            text = "" if tokenizer is None else f" ({tokenizer.token(token)!r:.40})"
            raise CallError(
                f"token id {shortly(token)}{text} is outside the vocabulary: the embedding table has {table} rows; leave it "
                "out, or take the tokenizer that belongs to the model"
            )
    if len(result) > context:
        raise CallError(f"{len(result)} tokens do not fit the context of {context}: give a larger context")
    return result


def _items(prompt: Any) -> list[Any]:
    """What a prompt that is no text is a list of."""
    if isinstance(prompt, Mapping):
        if "input_ids" in prompt:  # what a tokenizer of transformers returns
            raise CallError('a prompt is no dictionary: give its "input_ids", one list of whole numbers')
        if "role" in prompt:
            raise CallError("one message is no conversation: put it into a list, [message]")
    elif isinstance(items := _listed(prompt), list):
        return items
    raise CallError(_not_a_prompt(prompt))


def _listed(value: Any) -> Any:
    """A list of what can be gone through, be it once; texts, bytes, dictionaries and single values as they are."""
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        return value
    try:
        return list(value)
    except TypeError:  # a number in the form of an array or a tensor
        return value


def _kind(item: Any) -> str:
    """What an item of a list is."""
    if isinstance(item, str):
        return "text"
    if isinstance(item, Mapping):
        return "message"
    if isinstance(item, list):
        if item and all(isinstance(each, Mapping) for each in item):
            return "messages"
        return "tokens" if item and all(_kind(each) == "token" for each in item) else "list"
    try:
        operator.index(item)
    except TypeError:
        return type(item).__name__
    return "token" if not isinstance(item, bool) else "bool"


def _not_a_prompt(value: Any, where: str = "") -> str:
    hint = "; decode it: prompt.decode()" if isinstance(value, bytes | bytearray) else ""
    form = 'a text, token ids, or messages like [{"role": "user", "content": "Hello"}]'
    return f"{where}{type(value).__name__} is no prompt{hint}; it is {form}"
