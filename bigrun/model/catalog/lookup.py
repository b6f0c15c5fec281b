"""Well-known models by short name: what to plan without a file or a network, and where to fetch what can be run.

A configuration here holds the fields of the published `config.json` that decide shapes; `published` is the parameter
count that its makers, or its safetensors files, state, and a test counts it again.
"""

import difflib
from dataclasses import replace
from functools import cache

from bigrun.errors import CallError
from bigrun.model.catalog import dense as catalog_dense
from bigrun.model.catalog import mixture as catalog_mixture
from bigrun.model.catalog.entry import Entry
from bigrun.model.catalog.names import completed, form, words

ENTRIES = {entry.name: entry for entry in (*catalog_dense.ENTRIES, *catalog_mixture.ENTRIES)}
ALIASES = {
    "bloom": "bloom-176b",
    "mistral": "mistral-7b",  # which its makers called so before there were others
    "llama-33b": "llama-30b",  # the paper's name and that of its files
    **{f"llama-1-{size}": f"llama-{size}" for size in ("7b", "13b", "30b", "65b")},
    "mistral-7b-v0.1": "mistral-7b",
    "mistral-nemo": "mistral-nemo-12b",
    "mistral-nemo-2407": "mistral-nemo-12b",
    "mistral-large-123b": "mistral-large",
    "mistral-large-2407": "mistral-large",
    "mixtral-8x7b-v0.1": "mixtral-8x7b",
    "mixtral-8x22b-v0.1": "mixtral-8x22b",
    "qwen3-coder-480b": "qwen3-coder-480b-a35b",
    "phi-3-mini-4k": "phi-3-mini",
    "phi-3-medium-4k": "phi-3-medium",
    "command-r-35b": "command-r",
    "c4ai-command-r-v01": "command-r",
}
LONGEST = 100  # characters of a name
MOST_NAMED = 8  # of models that a name may mean
KINDS = ("instruct", "chat", "it", "base")
EXAMPLES = ("llama-3.1-8b", "qwen2.5-7b", "mistral-7b", "bloom-176b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-120b")


def _kinds(repo: str) -> set[str]:
    return set(repo.lower().split("-")) & set(KINDS)


def _tuned(entry: Entry) -> Entry:
    """The makers' instruction-tuned weights of the same shape."""
    (kind,) = _kinds(entry.tuned)
    shape = {**entry.config, "max_position_embeddings": entry.tuned_context or entry.config["max_position_embeddings"]}
    return replace(entry, name=f"{entry.name}-{kind}", repo=entry.tuned, config=shape)


@cache
def by_repo() -> dict[str, Entry]:
    plain = [entry for entry in ENTRIES.values() if entry.repo]
    tuned = [_tuned(entry) for entry in plain if entry.tuned]
    return {entry.repo.lower(): entry for entry in (*tuned, *plain)}


@cache
def _by_words() -> dict[tuple[str, ...], Entry]:
    """Names and aliases, as words."""
    return {words(name): ENTRIES[entry] for name, entry in ({name: name for name in ENTRIES} | ALIASES).items()}


@cache
def _sizes() -> tuple[tuple[tuple[str, ...], int], ...]:
    """(words, parameters) of every entry."""
    return tuple((words(entry.name), entry.spec().parameters) for entry in ENTRIES.values())


def find(name: str) -> Entry | None:
    """The entry of a name as people write it (names.py); CallError where several are meant, or a form of other tools.

    A kind ("-instruct", "-chat", "-it", "-base") asks for other weights, taken to be of the same shape. Where the catalog
    names a repository of that kind, the entry is of that repository; elsewhere `repo` is empty: a name for planning.
    """
    if len(name) > LONGEST or "/" in name:
        return None
    asked = words(name)
    kinds = {word for word in asked if word in KINDS}
    plain = tuple(word for word in asked if word not in KINDS)
    entry = _plain(name, plain)
    if entry is None or kinds <= _kinds(entry.repo):
        return entry
    if entry.tuned and kinds <= _kinds(entry.tuned):
        return _tuned(entry)
    return replace(entry, name="-".join([entry.name, *sorted(kinds)]), repo="")


def _plain(name: str, plain: tuple[str, ...]) -> Entry | None:
    """The entry of a name without its kind."""
    if plain in _by_words():
        return _by_words()[plain]
    if other := form(name):
        _refuse_form(name, other)
    found = completed(plain, _sizes())
    if len(found) > 1:
        entries = [_by_words()[each].name for each in found]
        more = f" and {len(entries) - MOST_NAMED} more" if len(entries) > MOST_NAMED else ""
        raise CallError(f"--model {name!r} may mean {', '.join(entries[:MOST_NAMED])}{more}: name one of them")
    return _by_words()[found[0]] if found else None


def _refuse_form(name: str, other: str) -> None:
    """CallError for a known model in a form of another tool."""
    rest = name[: name.lower().rindex(other.lower())].rstrip("-_:. ")
    try:
        known = find(rest)
    except CallError:  # of several models, which it would say
        known = None
    if known is not None:
        raise CallError(
            f"--model {name!r}: no name has a form of weights, such as {other}: bigrun makes int8 of the published checkpoint "
            f"itself, or keeps it with --weights 16bit; write {known.name}"
        )


def unknown(name: str) -> CallError:
    near = difflib.get_close_matches(name.lower()[:100], [*ENTRIES, *ALIASES], n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else f"the catalog has {', '.join(EXAMPLES)} and others"
    return CallError(
        f"--model {name[:100]!r} is no folder, GGUF file or catalog name; {hint} (a hub id is written owner/name)"
    )
