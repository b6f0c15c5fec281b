"""What people's checkpoints hold beside the plain case: done as transformers does it and said, or refused by name before
the first weight is fetched or read; and `inspect` says what a run would."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigrun import CallError, Runner
from bigrun.errors import CheckpointError, RunError, TokenizerError
from bigrun.loading.open import model_spec
from bigrun.model.resolve import resolve
from bigrun.text.tokenizer import Tokenizer
from support.checkpoints import FAMILIES, VOCAB, edit_config, rewrite, state, write_tokenizer
from support.commands import ended, run_command, run_process
from support.hub import Answers, Hub, environment
from support.long import only

RIG: dict[str, Any] = {"gpus": "none", "cpu": "100MB", "context": 64, "progress": False}
POINTER = "version https://git-lfs.github.com/spec/v1\n"
IDS = [[3, 7, 1, 8, 2, 200, 31, 5]]
EMBED = {
    "llama": "model.embed_tokens.weight",
    "bloom": "transformer.word_embeddings.weight",
    "opt": "model.decoder.embed_tokens.weight",
}
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bases")
    for name, write in FAMILIES.items():
        write(home / name)
    FAMILIES["llama"](home / "tied", tied=True)
    return home


def add(**tensors: torch.Tensor) -> Change:
    """Puts further tensors in the file; `__` is a dot."""
    more = {name.replace("__", "."): value for name, value in tensors.items()}
    return lambda folder: rewrite(folder, state(folder) | more)


def config(**fields: Any) -> Change:
    return lambda folder: edit_config(folder, **fields)


def raw_config(**fields: Any) -> Change:
    """Sets fields of config.json, null included."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def renamed(old: str, new: str) -> Change:
    return lambda folder: rewrite(folder, {n.replace(old, new): t for n, t in state(folder).items()})


def with_dtype(dtype: torch.dtype) -> Change:
    return lambda folder: rewrite(folder, {n: t.to(dtype) for n, t in state(folder).items()})


def copied(old: str, new: str) -> Change:
    return lambda folder: rewrite(folder, {**state(folder), new: state(folder)[old].clone()})


def renamed_to(name: str, value: torch.Tensor) -> Change:
    """Puts another tensor in the place of one."""
    return lambda folder: rewrite(folder, {**state(folder), name: value})


ZEROS, SOME = torch.zeros(64), torch.full((64,), 0.01)
HEAD = "lm_head.weight"
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
ATTENTION = "model__layers__0__self_attn"
# name → (base, change, words in the warnings, tensors that are ignored)
TAKEN: dict[str, tuple[str, Change, tuple[str, ...], tuple[str, ...]]] = {
    "tied, with a head of its own": ("llama", config(tie_word_embeddings=True), ("tie_word_embeddings", HEAD), ()),
    "tied, with its table twice": ("tied", copied(EMBED["llama"], HEAD), (), (HEAD,)),
    "tied, under the head's name": ("tied", renamed(EMBED["llama"], HEAD), (), ()),
    "bloom, under the head's name": ("bloom", renamed(EMBED["bloom"], HEAD), (), ()),
    "opt, under the head's name": ("opt", renamed(EMBED["opt"], HEAD), (), ()),
    "opt, with its table twice": ("opt", copied(EMBED["opt"], HEAD), (), (HEAD,)),
    "untied, with its table twice": ("llama", copied(EMBED["llama"], HEAD), (), ()),
    "rotary tables": (
        "llama",
        add(model__rotary_emb__inv_freq=SOME, rotary_emb__inv_freq=SOME, **{f"{ATTENTION}__rotary_emb__inv_freq": SOME}),
        (), ("model.rotary_emb.inv_freq", "rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ),
    "masks of other kinds of numbers": (
        "llama",
        add(
            model__position_ids=torch.arange(8)[None], h__attn__masked_bias=torch.tensor(-1e4, dtype=torch.float64),
            h__attn__bias=torch.ones(1, 1, 4, 4, dtype=torch.bool),
        ),
        (), ("model.position_ids", "h.attn.masked_bias", "h.attn.bias"),
    ),
    "a value head": ("llama", add(v_head__summary__weight=SOME[None], v_head__summary__bias=SOME[:1]), (),
                     ("v_head.summary.weight", "v_head.summary.bias")),
    "a version": ("opt", add(model__decoder__version=SOME[:1]), (), ("model.decoder.version",)),
    "scales of a float8 cache": (
        "llama", add(**{f"{ATTENTION}__k_scale": SOME[0], f"{ATTENTION}__v_proj__output_scale": SOME[:1]}), (),
        ("model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.v_proj.output_scale"),
    ),
    "biases of zeros": (
        "llama", add(lm_head__bias=torch.zeros(VOCAB), **{f"{ATTENTION}__q_proj__bias": ZEROS}), (),
        ("lm_head.bias", "model.layers.0.self_attn.q_proj.bias"),
    ),
    "no architectures": ("llama", config(architectures=None), (), ()),
    "architectures null": ("opt", raw_config(architectures=None), (), ()),
    "architectures of another case": ("llama", config(architectures=["LLaMAForCausalLM"]), (), ()),
    "a base model's class": ("bloom", config(architectures=["BloomModel"]), (), ()),
    "names without their prefix": ("llama", renamed("model.", ""), (), ()),
    "bloom without its prefix": ("bloom", renamed("transformer.", ""), (), ()),
    "swish": ("llama", config(hidden_act="swish"), (), ()),
    "float64": ("llama", with_dtype(torch.float64), (), ()),
    "dtype half of what is float32": ("llama", both(config(dtype="half"), with_dtype(torch.float32)), (), ()),
    "a quantisation that is not there": (
        "llama", config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("quantization_config", "bitsandbytes, 8 bits"), (),
    ),
    "llama3's context beside its scaling": (
        "llama", config(original_max_position_embeddings=16, rope_parameters=LLAMA3), (), (),
    ),
    "llama3's context left out": (
        "llama",
        config(rope_parameters={k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}), (), (),
    ),
    "no token": ("llama", config(pad_token_id=-1, eos_token_id=-1), (), ()),
}  # fmt: skip


@pytest.fixture
def folder(bases: Path, tmp_path: Path) -> Callable[[str, Change], Path]:
    def make(base: str, change: Change) -> Path:
        made = Path(shutil.copytree(bases / base, tmp_path / "model"))
        change(made)
        return made

    return make


def of_transformers(folder: Path) -> Any:
    """transformers' logits of IDS, of the same folder without a quantiser that it would run on the weights."""
    from transformers import AutoModelForCausalLM

    plain = Path(shutil.copytree(folder, folder.parent / "plain"))
    edit_config(plain, quantization_config=None)
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)(torch.tensor(IDS)).logits.numpy()


@pytest.mark.parametrize("case", TAKEN.values(), ids=TAKEN.keys())
def test_what_is_taken_gives_transformers_logits(
    folder: Callable[[str, Change], Path], case: tuple[str, Change, tuple[str, ...], tuple[str, ...]]
) -> None:
    base, change, words, ignored = case
    path = folder(base, change)
    with Runner(str(path), weights="float32", **RIG) as runner:
        assert np.abs(runner.logits(np.array(IDS)) - of_transformers(path)).max() < 1e-4
        notes = runner.notes
        assert model_spec(resolve(str(path))) == runner.spec, "a plan is of the same model"
    assert all(any(word in note for note in notes) for word in words), notes
    report = json.loads(run_command("inspect", path, "--json").stdout)
    assert (report["problems"], set(report["ignored"])) == ([], set(ignored))
    assert set(report["warnings"]) <= set(notes)
    text = run_command("inspect", path).stdout
    assert all(warning in text for warning in report["warnings"])
    assert ("ignored" in text) == bool(ignored)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
DOWN = "model.layers.0.mlp.down_proj"


def packed(name: str) -> Change:
    """A linear as a quantised format keeps it."""
    return lambda f: rewrite(
        f,
        {n: t for n, t in state(f).items() if n != f"{DOWN}.weight"}
        | {f"{DOWN}.{name}": torch.ones(8, 8, dtype=torch.int32)},
    )


REFUSED: dict[str, tuple[str, Change, tuple[str, ...]]] = {
    "a bias of the head": ("llama", add(lm_head__bias=torch.full((VOCAB,), 0.01)), ("lm_head.bias", "no place")),
    "a bias that the configuration does not have": ("llama", add(**{f"{ATTENTION}__q_proj__bias": SOME}), ("q_proj.bias",)),
    "a weight of nowhere": ("llama", add(model__extra__weight=SOME[None]), ("model.extra.weight", "no place")),
    "two families": ("llama", config(model_type="mistral"), ("LlamaForCausalLM", "'mistral'")),
    "no family": ("llama", config(architectures=None, model_type="gpt9"), ("architectures", "model_type")),
    "two spellings": ("bloom", config(num_attention_heads=8, n_head=4), ("n_head", "num_attention_heads")),
    "a split training's sums": ("bloom", config(slow_but_exact=True, pretraining_tp=2), ("pretraining_tp", "slow_but_exact")),
    "two hidden sizes": ("bloom", config(n_embed=32), ("n_embed", "hidden_size")),
    "a part of each head": ("llama", config(partial_rotary_factor=0.5), ("partial_rotary_factor",)),
    "a rotation a kind of layer": (
        "llama", config(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e4}}), ("full_attention",),
    ),
    "another task": ("llama", config(architectures=["LlamaForSequenceClassification"]), ("LlamaForSequenceClassification",)),
    "GPTQ": ("llama", both(packed("qweight"), config(quantization_config=GPTQ)), ("gptq, 4 bits, groups of 128", "float8")),
    "GPTQ, undeclared": ("llama", packed("qweight"), ("GPTQ or AWQ",)),
    "bitsandbytes": (
        "llama", both(packed("SCB"), config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})),
        ("bitsandbytes, 4 bits",),
    ),
    "a tied head of another shape": (
        "llama", both(config(tie_word_embeddings=True), renamed_to(HEAD, torch.ones(328, 64))), (HEAD, "no place"),
    ),
    "a tied head of packed numbers": (
        "llama", both(config(tie_word_embeddings=True), renamed_to(HEAD, torch.ones(VOCAB, 64, dtype=torch.int8))), (HEAD,),
    ),
    "a tensor cut from what is declared quantised": (
        "llama",
        both(config(quantization_config={"quant_method": "bitsandbytes"}), renamed("model.norm", "model.gone")),
        ("model.norm.weight", "missing"),
    ),
    "neither head nor tie": ("tied", config(tie_word_embeddings=False), (HEAD, "missing")),
    "neither table": ("tied", renamed(EMBED["llama"], "x"), (EMBED["llama"], "missing")),
    "a pointer": ("llama", lambda f: (f / "model.safetensors").write_text(POINTER), ("LFS",)),
    "a number for a dtype": ("llama", config(dtype=16), ("dtype",)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_done_is_refused_by_name(
    folder: Callable[[str, Change], Path], case: tuple[str, Change, tuple[str, ...]]
) -> None:
    base, change, words = case
    path = folder(base, change)
    with pytest.raises(CheckpointError) as caught:
        Runner(str(path), weights="float32", **RIG)
    assert all(word in str(caught.value) for word in words), caught.value
    problems = json.loads(run_command("inspect", path, "--json").stdout)["problems"]
    assert str(caught.value) in problems


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_ignored_tensors_are_not_even_looked_at(bases: Path, tmp_path: Path, form: str) -> None:
    """A mask of no dimensions has no rows to read."""
    path = Path(shutil.copytree(bases / "bloom", tmp_path / "model"))
    tensors = state(path) | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e9), "position_ids": torch.arange(4)}
    if form == "bin":
        torch.save(tensors, path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
    else:
        rewrite(path, tensors)
    with Runner(str(path), weights="float32", **RIG) as runner:
        assert np.isfinite(runner.logits(np.array(IDS))).all()


def test_logits_that_are_no_numbers_raise(bases: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bases / "llama", tmp_path / "model"))
    rewrite(path, {n: t * 1e30 if n == "model.norm.weight" else t for n, t in state(path).items()})
    rewrite(path, {n: t * 1e30 if n == HEAD else t for n, t in state(path).items()})
    with Runner(str(path), weights="float32", **RIG) as runner, pytest.raises(RunError, match="no numbers"):
        runner.logits(np.array(IDS))


def test_the_converted_model_has_the_head_that_was_found(bases: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bases / "llama", tmp_path / "model"))
    edit_config(path, tie_word_embeddings=True, dtype="float16")
    made = run_command("convert", "--model", path, "--out", tmp_path / "int8", "--quiet")
    assert made.exit_code == 0, made.output
    answers = []
    for source in (path, tmp_path / "int8"):
        with Runner(str(source), **RIG) as runner:
            assert not runner.spec.tied
            answers.append(runner.logits(np.array(IDS)))
    assert np.array_equal(*answers)


# ids beyond the table


def beyond(path: Path, index: int, **stop: Any) -> None:
    """A tokenizer with an added token of this id, which the model has no row for."""
    write_tokenizer(path)
    content = json.loads((path / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append({"id": index, "content": "<|more|>", "special": True, **flags})
    (path / "tokenizer.json").write_text(json.dumps(content))
    (path / "generation_config.json").write_text(json.dumps(stop))


@pytest.mark.parametrize("weights", ["int8", "float32"])
def test_a_token_without_a_row_of_the_table_is_refused_however_it_comes(
    bases: Path, tmp_path: Path, weights: str
) -> None:
    path = Path(shutil.copytree(bases / "llama", tmp_path / "model"))
    beyond(path, VOCAB, eos_token_id=[2, VOCAB])
    template = "{% for m in messages %}{{ m.content }}{% endfor %}<|more|>"
    with Runner(str(path), weights=weights, **RIG) as runner:
        assert runner.generate("the dog", 2).token_ids
        ways: dict[str, Callable[[], object]] = {
            "text": lambda: runner.generate("the <|more|> dog", 2),
            "a stream": lambda: list(runner.stream("<|more|>", 2)),
            "ids": lambda: runner.generate([3, VOCAB], 2),
            "negative": lambda: runner.generate([3, -1], 2),
            "logits": lambda: runner.logits(np.array([[3, VOCAB]])),
        }
        for way, call in ways.items():
            with pytest.raises(CallError, match=rf"token id (320|-1)\b.*{VOCAB} rows"):
                call()
            assert way
        with pytest.raises(CallError, match=r"320 \('<\|more\|>'\)"):
            runner.generate("<|more|>")
        runner.tokenizer.chat_template = template
        with pytest.raises(CallError, match=r"<\|more\|>"):
            runner.generate("the dog")
        assert any("<|more|>" in note for note in runner.notes)
        assert any("stop tokens 320" in note for note in runner.notes)
    ended(
        run_process("generate", "--model", str(path), "--gpus", "none", "--prompt", "<|more|>"),
        2,
        "<|more|>",
        "320 rows",
    )
    warnings = json.loads(run_command("inspect", path, "--json").stdout)["warnings"]
    assert [("<|more|>" in line, "stop tokens" in line) for line in warnings] == [(True, False), (False, True)]


def test_a_template_that_fails_hinders_chats_alone(bases: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bases / "llama", tmp_path / "model"))
    write_tokenizer(path, chat_template="{% for m in messages recursive %}{% endfor %}")
    asked = ("generate", "--model", path, "--gpus", "none", "--cpu", "1GB", "-p", "the dog", "--max-new-tokens", "2")
    ended(run_command(*asked), 4, "chat template")
    assert run_command(*asked, "--raw", "--quiet").exit_code == 0
    (tmp_path / "text").write_text("the dog and the fox " * 9)
    rig = ("--model", path, "--gpus", "none", "--cpu", "1GB", "--quiet")
    assert run_command("eval", "perplexity", *rig, "--text", tmp_path / "text", "--window", "16").exit_code == 0
    report = json.loads(run_command("inspect", path, "--json").stdout)
    assert report["tokenizer"] == "320 tokens, with a chat template that fails"
    assert "--raw" in report["problems"][0]


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "tokenizer_config.json"])
def test_small_files_are_plain_ones_and_no_message_quotes_them(bases: Path, tmp_path: Path, name: str) -> None:
    path = Path(shutil.copytree(bases / "llama", tmp_path / "model"))
    write_tokenizer(path)
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to("/proc/self/environ")
    with pytest.raises(TokenizerError, match="is not a file"):
        Tokenizer.from_folder(path)
    (path / name).unlink()
    (tmp_path / "secret").write_text("{% hunter2 %}")
    (path / name).symlink_to(tmp_path / "secret")
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_folder(path).render_chat([{"role": "user", "content": "x"}])
    assert "hunter2" not in str(caught.value)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(TokenizerError, match="is not a file"):
        Tokenizer.from_folder(path)


def test_an_index_that_names_a_head_which_nobody_saved(bases: Path, tmp_path: Path) -> None:
    """As older transformers left it, of tied models."""
    path = Path(shutil.copytree(bases / "tied", tmp_path / "model"))
    tensors = state(path)
    torch.save(tensors, path / "pytorch_model-1.bin")
    (path / "model.safetensors").unlink()
    index = dict.fromkeys((*tensors, HEAD), "pytorch_model-1.bin")
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    with Runner(str(path), weights="float32", **RIG) as runner:
        assert any(HEAD in note for note in runner.notes)
        assert np.isfinite(runner.logits(np.array(IDS))).all()


# A tokenizer that is of no use is told before the weights are fetched or read


def no_template(path: Path) -> None:
    write_tokenizer(path, chat_template="{% for %}")


UNUSABLE: dict[str, tuple[Change, str]] = {
    "none": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "damaged": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json"),
    "a pointer": (lambda f: (f / "tokenizer.json").write_text(POINTER), "LFS"),
    "a bad end": (lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "2"}'), "eos_token_id"),
    "an unknown BOS": (lambda f: write_tokenizer(f, bos_token="<nowhere>"), "<nowhere>"),
    "a template that is none": (no_template, "chat template"),
}


@pytest.fixture
def hub(bases: Path, tmp_path: Path) -> Iterator[tuple[Hub, Path]]:
    path = Path(shutil.copytree(bases / "llama", tmp_path / "model"))
    write_tokenizer(path)
    server = Hub(Answers({("some/model", "main"): path}))
    yield server, path
    server.close()


@pytest.mark.parametrize("name", only(UNUSABLE, quick=["none", "a bad end"]))
def test_a_tokenizer_of_no_use_is_told_before_a_weight_is_fetched(
    hub: tuple[Hub, Path], tmp_path: Path, name: str
) -> None:
    server, path = hub
    case = UNUSABLE[name]
    case[0](path)
    cache = environment(server, tmp_path / "cache")
    done = run_process("generate", "--model", "some/model", "--gpus", "none", "--prompt", "the dog", env=cache)
    assert (done.returncode, done.stdout) == (4, "")
    assert case[1] in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    with Runner(str(path), **RIG) as runner:  # which may be of use without text
        assert runner.logits(np.array(IDS)).shape == (1, 8, VOCAB)
        assert any(case[1] in note for note in runner.notes)
        with pytest.raises(TokenizerError):
            runner.generate("the dog")


def test_what_keeps_a_hub_model_from_running_is_told_before_a_weight_is_fetched(
    hub: tuple[Hub, Path], tmp_path: Path
) -> None:
    server, path = hub
    rewrite(path, state(path) | {"model.extra.weight": torch.ones(3, 3)})
    cache = environment(server, tmp_path / "cache")
    for command in (("generate", "--prompt", "x"), ("convert", "--out", str(tmp_path / "int8"))):
        done = run_process(*command, "--model", "some/model", env=cache)
        assert (done.returncode, done.stdout) == (4, "")
        assert "model.extra.weight" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    report = json.loads(run_process("inspect", "some/model", "--json", env=cache).stdout)
    assert any("model.extra.weight" in problem for problem in report["problems"])


def test_what_is_asked_for_is_checked_before_a_weight_is_fetched(hub: tuple[Hub, Path], tmp_path: Path) -> None:
    server, path = hub
    beyond(path, VOCAB)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "of").write_text("another's")
    (tmp_path / "text").write_text("the dog " * 99 + "<|more|>")
    run = ("generate", "--prompt", "the dog")
    cases: list[tuple[tuple[str, ...], str]] = [
        (("convert", "--out", str(tmp_path / "int8"), "--skip", "typo"), "typo"),
        (("convert", "--out", str(tmp_path / "file")), "is no folder"),
        (("convert", "--out", str(tmp_path / "full")), "is not empty"),
        ((*run, "--weights", "16bit", "--cache", str(tmp_path / "c")), "keeps int8"),
        ((*run, "--cache", str(tmp_path / "file")), "is no folder"),
        (("eval", "perplexity", "--text", str(tmp_path / "text"), "--window", "64"), "<|more|>"),
    ]
    for args, words in cases:
        done = run_process(*args, "--model", "some/model", env=environment(server, tmp_path / "cache"))
        assert (done.returncode, done.stdout) == (2, ""), (args, done.stderr)
        assert words in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


def test_a_prompt_that_cannot_be_run_is_refused_before_the_weights_are_read(
    hub: tuple[Hub, Path], tmp_path: Path
) -> None:
    server, _ = hub
    cache = environment(server, tmp_path / "cache")
    asked = ("generate", "--model", "some/model", "--gpus", "none", "--context", "8", "--prompt", "the dog " * 20)
    done = run_process(*asked, env=cache)
    assert (done.returncode, done.stdout) == (2, "")
    assert "context 8" in done.stderr
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
