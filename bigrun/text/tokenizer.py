"""One tokenizer for every checkpoint: text to ids and back, where a generation stops, and the chat prompt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import tokenizers

from bigrun.errors import CallError, TokenizerError
from bigrun.text import chat
from bigrun.text import sampling_defaults as recommended
from bigrun.text.added_tokens import add_tokens
from bigrun.text.from_vocabulary import from_vocabulary
from bigrun.text.gguf_vocabulary import vocabulary
from bigrun.text.stream import TextStream, pieces_of
from bigrun.text.template_args import check_arguments
from bigrun.text.untrusted import building, default_template, field, read_object, read_text, token_ids, token_text
from bigrun.text.vocabulary_files import WHOLE, has_tokenizer, no_tokenizer

# Tokens that end a turn or a document, by name: checkpoints often mark only one of them as their end of sequence.
_END_OF_TURN = (
    "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<end_of_turn>",
    "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>", "[EOT]", "<EOT>",
)  # fmt: skip
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")  # what chat templates know by these names


class Tokenizer:
    """Text to token ids and back.

    bos_id         the beginning-of-sequence token, if there is one; `adds_bos` says whether `encode` puts it first
    stop_ids       a generation ends with any of these
    vocab_size     tokens that the tokenizer knows; the model's logits are often padded beyond it
    chat_template  Jinja source, or None for a model that was not trained to chat
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        named: Mapping[str, str],
        add_bos: bool | None,
        stop_ids: Iterable[int],
        chat_template: str | None,
        split_special_tokens: bool = False,
    ) -> None:
        """`named` has "bos_token" and the like, as text. `add_bos` None leaves it to the backend's own template.
        `split_special_tokens`: special tokens spelled out in a text are text.

        Raises TokenizerError for a BOS or EOS that is not in the vocabulary, and for a decoder that cannot stream.
        """
        # A training script's length limit or padding, left in tokenizer.json, would cut or pad prompts.
        backend.encode_special_tokens = split_special_tokens
        backend.no_truncation()
        backend.no_padding()
        self._backend, self._named = backend, dict(named)
        self._new_pieces = pieces_of(backend)
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(index for index, token in added.items() if token.special)
        self.bos_id: int | None = self._id_named("bos_token")
        self._prefix = self._first_ids(add_bos)
        ends = {index for index, token in added.items() if token.content in _END_OF_TURN}
        eos_id = self._id_named("eos_token")
        self.stop_ids: frozenset[int] = frozenset(ends.union(stop_ids, [] if eos_id is None else [eos_id]))
        self.vocab_size: int = backend.get_vocab_size()
        self.chat_template = chat_template
        self._defaults: Callable[[], recommended.Defaults] = recommended.Defaults

    @classmethod
    def from_folder(cls, path: Path) -> Tokenizer:
        """From a checkpoint's folder: its tokenizer.json, else tokenizer.model, else vocab.json and merges.txt.

        tokenizer_config.json, special_tokens_map.json, generation_config.json (or else config.json, for its ids of the
        end of a sequence) and chat_template.jinja are read where they exist. Raises TokenizerError.
        """
        source = read_text(path / WHOLE)
        if source is None and not has_tokenizer(path):
            raise TokenizerError(f"{path} {no_tokenizer(path)}")
        config = read_object(path / "tokenizer_config.json") or {}
        # of old files, whose settings have no list of added tokens; transformers reads it for those alone, and first
        special = {} if config.get("added_tokens_decoder") else read_object(path / "special_tokens_map.json") or {}
        generation = read_object(path / "generation_config.json")
        if generation is None:
            generation = read_object(path / "config.json") or {}
        if source is None:
            backend, config = from_vocabulary(path, config, special)
        else:
            with building(str(path / WHOLE)):
                backend = tokenizers.Tokenizer.from_str(source)
        if backend.padding is not None and config.get("pad_token") is None and special.get("pad_token") is None:
            config = {**config, "pad_token": str(backend.padding["pad_token"])}
        add_tokens(backend, config, special, exact=source is None)
        named = {name: text for name in _NAMED if (text := token_text(special, name) or token_text(config, name))}
        template = read_text(path / "chat_template.jinja")
        made = cls(
            backend,
            named=named,
            add_bos=field(config, "add_bos_token", bool),
            stop_ids=token_ids(generation.get("eos_token_id"), "eos_token_id"),
            chat_template=default_template(config) if template is None else template,
            split_special_tokens=field(config, "split_special_tokens", bool) or False,
        )
        made._defaults = partial(recommended.from_folder, path)
        return made

    @classmethod
    def from_gguf(cls, fields: Mapping[str, Any]) -> Tokenizer:
        """From a GGUF file's metadata, decoded: `tokenizer.ggml.model`, `.tokens`, `.token_type` and what the kind needs.

        Byte-level BPE (`model` "gpt2") and SentencePiece's ("llama"). Raises TokenizerError.
        """
        made = cls(**vocabulary(fields))
        said = {name: value for name, value in fields.items() if name.startswith(recommended.GGUF)}
        made._defaults = partial(recommended.from_gguf, said)
        return made

    @cached_property
    def sampling_defaults(self) -> recommended.Defaults:
        """How the model asks to be sampled. Raises TokenizerError for what it cannot mean."""
        return self._defaults()

    @property
    def adds_bos(self) -> bool:
        return bool(self._prefix)

    def ids_from(self, first: int) -> list[tuple[int, str]]:
        """(id, token) of every token from an id on, in order."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return sorted((index, text) for text, index in vocabulary.items() if index >= first)

    def token(self, index: int) -> str:
        """The token of an id; "" where it has none."""
        return self._backend.id_to_token(index) or ""

    def check_template(self) -> None:
        """TokenizerError where the chat template fails on the shortest chat; one that refuses it may take others."""
        if self.chat_template is not None:
            with suppress(CallError):
                self.render_chat([{"role": "user", "content": "Hello"}])

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Token ids of `text`; special tokens spelled out in it, as in a rendered chat, become those tokens.

        `add_bos` puts what the tokenizer puts first in front, unless the text already begins with it. No end of
        sequence is added: a prompt goes on.
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise CallError("the text is not valid Unicode: it holds half of a surrogate pair") from error
        if add_bos and ids[: len(self._prefix)] != self._prefix:
            return self._prefix + ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`: special tokens and ids without a token print nothing, broken UTF-8 prints U+FFFD."""
        printed = [
            index for index in ids if index not in self._special_ids
        ]  # some that are normalised the backend prints
        text: str = self._backend.decode(printed, skip_special_tokens=True)
        return text

    def stream(self, shown: Collection[str] = ()) -> TextStream:
        """A decoder to be fed one id at a time; its pieces joined are `decode` of them all.

        Special tokens that the texts `shown` are made of, as the marks of a model's thoughts are, print as themselves.
        """
        texts = {index: self.token(index) for index in self._special_ids} if shown else {}
        printed = {index: text for index, text in texts.items() if text and any(text in some for some in shown)}
        return TextStream(self._backend, self._special_ids, self._new_pieces(), printed)

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for a conversation; `arguments` are the template's own variables, like `enable_thinking`.

        Raises CallError if the model has no template, or it refuses the messages or does not read an argument.
        """
        if self.chat_template is None:
            raise CallError(
                "this model has no chat template: it was not trained to chat; give it a plain prompt (--raw)"
            )
        checked = check_arguments(self.chat_template, arguments or {})
        return chat.render(self.chat_template, messages, add_generation_prompt, checked, **self._named)

    def _id_named(self, name: str) -> int | None:
        if name not in self._named:
            return None
        index: int | None = self._backend.token_to_id(self._named[name])
        if index is None:
            raise TokenizerError(f"the {name} {self._named[name]!r:.80} is not in the tokenizer's vocabulary")
        return index

    def _first_ids(self, add_bos: bool | None) -> list[int]:
        """What goes before a text: the backend's template says it, unless the checkpoint says yes or no to a BOS."""
        probe = self._backend.encode("a")
        mask = [*probe.special_tokens_mask, 0]  # 1 for what the template adds
        template: list[int] = probe.ids[: mask.index(0)]
        if add_bos is None or (add_bos and template):
            return template
        if add_bos and self.bos_id is None:
            raise TokenizerError("the tokenizer is to add a BOS token, but the checkpoint names none (bos_token)")
        return [self.bos_id] if add_bos and self.bos_id is not None else []
