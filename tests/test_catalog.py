"""Every name of the catalog resolves, and every shape counts the parameters that are published for it."""

from math import ceil

import pytest

import bigrun
from bigrun.errors import CallError, CheckpointError
from bigrun.model.catalog import lookup as catalog
from bigrun.model.catalog.entry import Entry
from bigrun.model.catalog.lookup import ALIASES, ENTRIES, by_repo, find, unknown
from bigrun.model.catalog.names import words
from bigrun.model.resolve import resolve
from bigrun.model.spec import ModelSpec

WANTED = [
    "smollm2-135m", "llama-7b", "llama-13b", "llama-30b", "llama-65b", "llama-2-7b", "llama-3.1-405b",
    "codellama-34b", "yi-34b", "mistral-7b", "mistral-7b-v0.3", "mistral-nemo-12b", "mistral-large", "mixtral-8x7b",
    "mixtral-8x22b", "qwen2-7b", "qwen2-72b", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b",
    "qwen2.5-14b", "qwen2.5-32b", "qwen2.5-72b", "qwq-32b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b",
    "qwen3-14b", "qwen3-32b", "qwen3-30b-a3b", "qwen3-235b-a22b", "qwen3-coder-480b-a35b", "gemma-2b", "gemma-7b",
    "gemma-2-2b", "gemma-2-9b", "gemma-2-27b", "gemma-3-1b", "gemma-3-4b", "gemma-3-12b", "gemma-3-27b", "phi-2",
    "phi-3-mini", "phi-3-medium", "phi-4",
    "gpt-neox-20b", "pythia-12b", "falcon-7b", "falcon-40b", "falcon-180b", "command-r", "deepseek-v3",
    "deepseek-r1", "deepseek-v2-lite", "deepseek-v2", "kimi-k2", "gpt-oss-20b", "gpt-oss-120b", "glm-4.5",
    "glm-4.5-air", "bloom-176b", "opt-13b", "opt-66b", "opt-175b",
]  # fmt: skip


def test_the_catalog_has_the_models_that_people_ask_for() -> None:
    assert len(ENTRIES) >= 45
    assert set(WANTED) <= set(ENTRIES)
    assert list(ENTRIES) == [name.lower() for name in ENTRIES]


@pytest.mark.parametrize("name", ENTRIES)
def test_a_shape_counts_the_parameters_that_are_published(name: str) -> None:
    entry = ENTRIES[name]
    count = entry.spec().parameters
    if entry.published is not None:
        assert not entry.published_text
        assert count + entry.beside == entry.published
    else:
        assert entry.beside == 0
        number, unit = entry.published_text[:-1], {"B": 10**9, "T": 10**12}[entry.published_text[-1]]
        assert f"{count / unit:.{len(number.partition('.')[2])}f}" == number


@pytest.mark.parametrize("name", ENTRIES)
def test_a_source_says_where_this_model_is_published(name: str) -> None:
    entry = ENTRIES[name]
    assert (entry.repo and entry.repo in entry.source) or "arXiv" in entry.source
    assert "{" not in entry.source
    assert (entry.repo == "") == (name == "opt-175b")  # the one whose weights were given out on request


def drafting(spec: ModelSpec) -> int:
    """DeepSeek-V3's layer for a second token (arXiv 2412.19437, 2.2), as its files hold it: one more block, the linear
    that joins two vectors, three norms, and a table and a head of its own."""
    last = len(spec.blocks) - 1
    block = spec.part(f"blocks.{last}").parameters + spec.part(f"blocks.{last}.experts").parameters
    return block + 2 * spec.hidden**2 + 3 * spec.hidden + 2 * spec.vocab * spec.hidden


def scales(spec: ModelSpec, blocks: list[int]) -> int:
    """One number for each 128 × 128 entries of the linears; experts, and what is fused here, are linears of their own."""

    def of(rows: int, columns: int) -> int:
        return ceil(rows / 128) * ceil(columns / 128)

    total = 0
    for number in blocks:
        block = spec.blocks[number]
        latent, experts, h = block.latent, block.experts, spec.hidden
        assert latent is not None
        total += of(latent.q_rank, h) + of(block.heads * (latent.nope + latent.rope), latent.q_rank)
        total += of(latent.kv_rank + latent.rope, h) + of(block.heads * (latent.nope + latent.value), latent.kv_rank)
        total += of(h, block.heads * latent.value)
        inner, count = (block.intermediate, 1) if experts is None else (experts.intermediate, experts.count + 1)
        total += count * (2 * of(inner, h) + of(h, inner))
    return total


def test_what_a_published_count_holds_beside_the_model() -> None:
    counted = set()
    for name, entry in ENTRIES.items():
        spec = entry.spec()
        block = spec.blocks[0]
        if name in ("llama-2-7b", "llama-2-13b", "llama-2-70b"):  # rotary frequencies, one for two entries of a head
            beside = len(spec.blocks) * block.head_dim // 2
        elif spec.family in ("qwen3", "falcon") and entry.beside:  # the tied table, once more
            assert spec.tied
            beside = spec.vocab * spec.hidden
        elif spec.family == "glm4_moe":
            beside = drafting(spec)
        elif name == "deepseek-v3":
            beside = drafting(spec) + scales(spec, [*range(len(spec.blocks)), -1])
        else:
            beside = 0
        assert entry.beside == beside, name
        counted |= {name} if beside else set()
    assert len(counted) == 11


def test_the_bytes_of_weights_that_are_not_of_16_bits() -> None:
    byte_counts = {name: entry.checkpoint_bytes for name, entry in ENTRIES.items() if entry.checkpoint_bytes}
    assert set(byte_counts) == {"deepseek-v3", "deepseek-r1", "kimi-k2", "gpt-oss-20b", "gpt-oss-120b"}
    for name, count in byte_counts.items():
        entry = ENTRIES[name]
        assert entry.spec().checkpoint_bytes == count
        assert 0.5 * entry.spec().parameters < count < 1.1 * entry.spec().parameters
        assert "quantization_config" in entry.config
        assert entry.spec().checkpoint_dtype == "bfloat16"
    wide, blocks, small = 3_918_786_560, 680_571_043_840, 41_555_600  # as the hub counts DeepSeek-V3's dtypes
    assert wide + blocks + small == ENTRIES["deepseek-v3"].published
    assert 2 * wide + blocks + 4 * small == byte_counts["deepseek-v3"]
    # gpt-oss (arXiv 2508.10925, table 1): 12.8 and 60.8 GiB
    assert [round(byte_counts[f"gpt-oss-{size}"] / 2**30, 1) for size in ("20b", "120b")] == [12.8, 60.8]


@pytest.mark.parametrize("name", ENTRIES)
def test_a_name_resolves_as_people_write_it(name: str) -> None:
    entry = ENTRIES[name]
    for written in (name, name.upper(), name.replace("-", "_"), f" {name.replace('-', ' ').title()} "):
        assert find(written) is entry
    if entry.repo:
        assert by_repo()[entry.repo.lower()] is entry


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_means_an_entry_and_hides_none(name: str) -> None:
    assert find(name) is ENTRIES[ALIASES[name]]
    assert name not in ENTRIES


@pytest.mark.parametrize(
    ("written", "name", "repo"),
    [
        ("Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("llama-3.1-405b-instruct", "llama-3.1-405b-instruct", "meta-llama/Llama-3.1-405B-Instruct"),
        ("meta-llama-3.1-8b", "llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("llama-2-7b-hf", "llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("Llama 2 7B chat hf", "llama-2-7b-chat", "meta-llama/Llama-2-7b-chat-hf"),
        ("qwen2.5-7b-instruct", "qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("mistral-7b-instruct-v0.3", "mistral-7b-v0.3-instruct", "mistralai/Mistral-7B-Instruct-v0.3"),
        ("mixtral-8x7b-instruct-v0.1", "mixtral-8x7b-instruct", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
        ("smollm2-135m-instruct", "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("llama-3.3-70b-instruct", "llama-3.3-70b", "meta-llama/Llama-3.3-70B-Instruct"),
        ("gemma-2-9b-it", "gemma-2-9b", "google/gemma-2-9b-it"),
        ("phi-3-mini-4k-instruct", "phi-3-mini", "microsoft/Phi-3-mini-4k-instruct"),
        ("mistral-small-24b-base", "mistral-small-24b", "mistralai/Mistral-Small-24B-Base-2501"),
        ("qwen2.5-7b-base", "qwen2.5-7b-base", ""),  # no repository of that kind is known here
        ("falcon-7b-instruct", "falcon-7b-instruct", ""),
        ("qwen2.5-7b-chat", "qwen2.5-7b-chat", ""),
        ("llama-3.1-8b-chat-instruct", "llama-3.1-8b-chat-instruct", ""),  # nobody tuned it both ways
    ],
)
def test_a_kind_asks_for_weights_of_that_kind_or_for_a_plan_alone(written: str, name: str, repo: str) -> None:
    entry = find(written)
    assert entry is not None
    assert (entry.name, entry.repo) == (name, repo)
    model = resolve(written)
    assert (model.repo, model.entry) == (repo or None, entry) or model.gguf is not None  # the file that comes along
    if repo:
        assert by_repo()[repo.lower()] == entry


# As people type them, who come from other tools or from memory → the catalog's name.
TYPED = {
    "llama3.1:70b": "llama-3.1-70b", "llama3.1-70b": "llama-3.1-70b", "llama2-70b": "llama-2-70b", "llama3:8b": "llama-3-8b",
    "LLaMA2:7b": "llama-2-7b", "llama3.3": "llama-3.3-70b", "llama3.2:3b-instruct": "llama-3.2-3b-instruct",
    "mistral": "mistral-7b", "mistral:latest": "mistral-7b", "mistral-nemo:12b": "mistral-nemo-12b",
    "mistral-small:24b": "mistral-small-24b", "mistral:24b": "mistral-small-24b", "mixtral:8x7b": "mixtral-8x7b",
    "qwen3-235b": "qwen3-235b-a22b", "qwen3:30b": "qwen3-30b-a3b", "qwen-3-8b": "qwen3-8b",
    "qwen2.5:7b-instruct": "qwen2.5-7b-instruct",
    "qwen3-coder:480b": "qwen3-coder-480b-a35b", "gemma-3-27b": "gemma-3-27b", "gemma3:4b": "gemma-3-4b",
    "gemma2:2b": "gemma-2-2b",
    "gemma:7b": "gemma-7b", "phi4": "phi-4", "phi3:14b": "phi-3-medium", "phi3:3.8b": "phi-3-mini", "phi3:mini": "phi-3-mini",
    "deepseek-r1:671b": "deepseek-r1", "deepseek-v2:16b": "deepseek-v2-lite", "deepseek-v2:236b": "deepseek-v2",
    "gpt-oss:120b": "gpt-oss-120b", "kimi-k2:1t": "kimi-k2", "tinyllama": "tinyllama-1.1b", "codellama:34b": "codellama-34b",
    "smollm2:135m": "smollm2-135m", "command-r:35b": "command-r", "falcon:180b": "falcon-180b", "Yi 34B": "yi-34b",
}  # fmt: skip
AMBIGUOUS = {
    "mixtral": "mixtral-8x7b, mixtral-8x22b", "phi3": "phi-3-mini, phi-3-medium", "llama3": "llama-3-8b, llama-3-70b",
    "llama:70b": "llama-2-70b, llama-3-70b, llama-3.1-70b, llama-3.3-70b", "gpt-oss": "gpt-oss-20b, gpt-oss-120b",
    "smollm2": "smollm2-135m, smollm2-360m, smollm2-1.7b", "llama3.1-instruct": "llama-3.1-8b, llama-3.1-70b, llama-3.1-405b",
}  # fmt: skip
FORMS = {
    "llama3.1:70b-instruct-q4_K_M": ("q4_K_M", "llama-3.1-70b-instruct"), "llama3.1:70b-q8_0": ("q8_0", "llama-3.1-70b"),
    "llama-3.1-8b-Q4_0": ("Q4_0", "llama-3.1-8b"), "qwen3-32b-AWQ": ("AWQ", "qwen3-32b"), "mistral:7b-fp16": ("fp16",
    "mistral-7b"),
    "llama-2-13b-GPTQ": ("GPTQ", "llama-2-13b"), "gemma2:9b-iq2_xs": ("iq2_xs", "gemma-2-9b"),
    "llama-3.1-8b-4bit": ("4bit", "llama-3.1-8b"), "llama-3.1-8b-gguf": ("gguf", "llama-3.1-8b"),
}  # fmt: skip


@pytest.mark.parametrize(("typed", "name"), TYPED.items())
def test_names_are_found_as_people_type_them(typed: str, name: str) -> None:
    entry = find(typed)
    assert entry is not None
    assert entry.name == name


@pytest.mark.parametrize(("typed", "names"), AMBIGUOUS.items())
def test_a_name_of_several_models_is_answered_with_all_of_them(typed: str, names: str) -> None:
    with pytest.raises(CallError, match=rf"^model '{typed}' may mean {names}: name one of them$"):
        resolve(typed)


def test_of_many_the_first_are_named() -> None:
    with pytest.raises(CallError, match=r"llama-7b, .* and 7 more: name one"):
        find("llama")


@pytest.mark.parametrize(("typed", "said"), FORMS.items())
def test_a_form_of_weights_of_other_tools_is_refused_with_what_to_write(typed: str, said: tuple[str, str]) -> None:
    with pytest.raises(CallError, match=rf"such as {said[0]}: .*; write {said[1]}$"):
        resolve(typed)


@pytest.mark.parametrize(
    "typed", ["deepseek-r1:7b", "qwen2.5-coder:32b", "llama3.1:7b", "zzz-q4_K_M", "llama-3.1-70b-turbo", "70b", "q8_0"]
)
def test_nothing_else_is_taken_for_a_model(typed: str) -> None:
    assert find(typed) is None
    with pytest.raises(CallError, match=r"no folder, GGUF file or catalog name"):
        resolve(typed)


def test_no_two_names_are_the_same_words() -> None:
    assert len({words(name) for name in (*ENTRIES, *ALIASES)}) == len(ENTRIES) + len(ALIASES)


def test_contexts_are_published_in_kibitokens() -> None:
    """So a slip of a digit shows."""
    assert [e.name for e in ENTRIES.values() if e.spec().context_limit % 1024] == []


def test_widths_are_multiples_of_eight() -> None:
    """So a slip of a digit shows where a page gives the parameters to two figures."""
    blocks = {(e.name, block) for e in ENTRIES.values() for block in e.spec().blocks}
    assert {name for name, b in blocks if b.hidden % 8 or b.intermediate % 8 or b.head_dim % 2} == set()


def test_a_tuned_model_has_its_own_context() -> None:
    contexts = [entry.spec().context_limit for name in ("qwen2.5-7b", "qwen2.5-7b-instruct") if (entry := find(name))]
    assert contexts == [131072, 32768]
    assert by_repo()["qwen/qwen2.5-7b-instruct"].spec().context_limit == 32768


@pytest.mark.parametrize("name", ["", "-", "it", "instruct", "llama-2-7b-foo", "meta-llama/Llama-2-7b", "b" * 9999])
def test_what_is_no_name_is_none(name: str) -> None:
    assert find(name) is None


def test_an_unknown_name_is_answered_with_near_ones_or_a_few() -> None:
    assert "did you mean qwen3-8b" in str(unknown("qwen-3-9b"))
    for name in ("deepseek-v9", "Lama-2-7b", "zzz", "x" * 9999):
        text = str(unknown(name))
        assert len(text) < 320
        assert "owner/name" in text
    assert ", ".join(catalog.EXAMPLES) in str(unknown("zzz"))
    assert set(catalog.EXAMPLES) <= set(ENTRIES)


def test_a_bad_entry_is_named() -> None:
    entry = Entry("toy", "", {"architectures": ["LlamaForCausalLM"], "vocab_size": 5}, None, "nowhere")
    with pytest.raises(CheckpointError, match="catalog: toy: field 'hidden_size' is missing"):
        entry.spec()


def test_gpt_neox_20b_runs_on_one_card_of_24_gb() -> None:
    """What LLM.int8() was shown with: the whole model in int8, and its context of 2,048 tokens, on a consumer's card."""
    made = bigrun.plan("gpt-neox-20b", gpus="1x24GB", host="none")
    assert (made.fits, made.runs, made.context_tokens) == (True, True, 2048)
    assert {each.decode_on for each in made.placements} == {"cuda:0"}
    assert made.device("cuda:0").used_bytes < 24e9
