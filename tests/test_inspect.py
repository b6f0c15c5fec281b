"""`bigrun inspect`: the same facts for a person and as JSON, for every kind of source, from headers alone; what is wrong, all
of it at once; and the exit status that says so."""

import json
import os
import resource
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from bigrun.cli.convert import convert_model
from bigrun.cli.inspection import MOST_PROBLEMS
from bigrun.session.options import Options
from support.checkpoints import FAMILIES, edit_config, gguf_twin, llama, rewrite, state, write_tokenizer
from support.commands import Done, run_command, run_process
from support.hub import COMMIT, Answers, Hub, environment

DOWN, UP, NORM = (f"model.layers.1.{name}.weight" for name in ("mlp.down_proj", "mlp.up_proj", "input_layernorm"))
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same small model in every form, and its relatives."""
    home = tmp_path_factory.mktemp("sources")
    llama(home / "single", tokenizer=True)
    llama(home / "sharded", dtype="bfloat16", max_shard_size="60KB")
    FAMILIES["bloom"](home / "bloom", dtype="float16")
    FAMILIES["opt"](home / "opt")
    shutil.copytree(home / "single", home / "torch")
    torch.save(state(home / "single"), home / "torch" / "pytorch_model.bin")
    (home / "torch" / "model.safetensors").unlink()
    write_tokenizer(home / "torch", chat_template=TEMPLATE)
    gguf_twin(home / "single", home / "one.gguf")
    convert_model(Options.of(model=str(home / "single"), progress=False), home / "conversion")
    convert_model(Options.of(model=str(home / "one.gguf"), progress=False), home / "of-gguf")
    split(home / "one.gguf", home / "split")
    return {path.name: path for path in home.iterdir()} | {"split": home / "split" / "m-00002-of-00003.gguf"}


def split(source: Path, folder: Path) -> None:
    folder.mkdir()
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=-(-len(reader.tensors) // 3))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kinds = field.types
            writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def inspected(path: Path, status: int = 0) -> Any:
    """The JSON; the text for a person says the same, and both end in the status."""
    made, printed = run_command("inspect", str(path), "--json"), run_command("inspect", str(path))
    report = json.loads(made.stdout)
    for result in (made, printed):
        assert result.exit_code == status, result.output
        count = len(report["problems"])
        plural = "s" * (count > 1)
        assert result.stderr == (
            f"bigrun: {path}: cannot be run as it is: {count} problem{plural} found\n" if status else ""
        )
    assert report["path"] == str(path)
    for word in (
        report["format"],
        report["tokenizer"],
        *report["dtypes"],
        *report["problems"],
        report["family"] or "problems",
    ):
        assert word in printed.stdout
    assert ("none that its headers show" in printed.stdout) == (status == 0)
    return report


FORMATS = {
    "single": "safetensors", "sharded": "safetensors", "bloom": "safetensors", "opt": "safetensors", "torch": "torch",
    "one.gguf": "GGUF", "split": "GGUF", "conversion": "int8 conversion", "of-gguf": "int8 conversion",
}  # fmt: skip
TOKENIZERS = {
    "torch": "320 tokens, with a chat template", "sharded": "none (text", "bloom": "none (text", "opt": "none (text",
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_sound_source_of_every_kind(sources: dict[str, Path], name: str) -> None:
    path = sources[name]
    report = inspected(path)
    family = name if name in FAMILIES else "llama"
    assert (report["format"], report["family"], report["problems"]) == (FORMATS[name], family, [])
    assert report["tokenizer"].startswith(TOKENIZERS.get(name, "320 tokens, no chat template"))
    planned = json.loads(run_command("plan", "--model", str(path), "--gpus", "none", "--cpu", "1GB", "--json").stdout)
    assert report["parameters"] == planned["parameters"]
    assert report["int8_bytes"] == sum(device["weights_bytes"] for device in planned["devices"])
    folder = path.parent if name == "split" else path
    there = [path] if name == "one.gguf" else folder.iterdir()
    files = [file for file in there if file.suffix in SUFFIXES and file.stem != "metadata"]
    assert report["files"] == {file.name: file.stat().st_size for file in files}
    if name in ("conversion", "of-gguf"):
        assert (report["tensors"], report["dtypes"], report["bytes"]) == (0, {}, sum(report["files"].values()))
        return
    saved = state(sources["single" if FORMATS[name] != "safetensors" else name])
    assert report["tensors"] == len(saved)
    dtype = {"sharded": "BF16", "bloom": "F16"}.get(name, "F32")
    assert report["dtypes"] == {dtype: sum(tensor.numel() for tensor in saved.values())}
    assert report["bytes"] == sum(t.numel() for t in saved.values()) * (4 if dtype == "F32" else 2)
    assert report["context_tokens"] == (128 if name != "bloom" else report["context_tokens"])


SUFFIXES = (".safetensors", ".bin", ".gguf")


@pytest.fixture
def single(sources: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sources["single"], tmp_path / "model"))


def test_all_problems_are_listed_at_once(single: Path) -> None:
    tensors = state(single)
    rewrite(
        single, {n: t for n, t in tensors.items() if n != NORM} | {DOWN: tensors[DOWN].T, "model.extra": torch.ones(3)}
    )
    (single / "tokenizer.json").write_text("{")
    problems = inspected(single, 4)["problems"]
    assert len(problems) == 4
    for words in ((NORM, "missing"), (DOWN, "[96, 64]", "[64, 96]"), ("model.extra", "no place"), ("tokenizer.json",)):
        assert sum(all(word in problem for word in words) for problem in problems) == 1, words


def test_a_tensor_of_a_kind_that_is_not_read(single: Path) -> None:
    tensors = state(single)
    rewrite(single, tensors | {DOWN: tensors[DOWN].to(torch.int8), UP: tensors[UP].to(torch.float8_e4m3fn)})
    report = inspected(single, 4)
    assert ["I8" in report["problems"][i] or "F8_E4M3" in report["problems"][i] for i in (0, 1)] == [True, True]
    assert report["dtypes"].keys() == {"F32", "F8_E4M3", "I8"}


def test_of_very_many_problems_the_first_are_told(single: Path) -> None:
    edit_config(single, num_hidden_layers=30)
    problems = inspected(single, 4)["problems"]
    assert len(problems) == MOST_PROBLEMS + 1
    assert problems[-1] == f"and {28 * 9 - MOST_PROBLEMS} more"


def test_what_is_left_is_told_where_the_configuration_or_the_weights_are_bad(single: Path) -> None:
    edit_config(single, hidden_size="64")
    report = inspected(single, 4)
    assert (report["family"], report["parameters"], report["tensors"]) == (None, None, 21)
    assert "hidden_size" in report["problems"][0]
    edit_config(single, hidden_size=64)
    os.truncate(single / "model.safetensors", 1000)
    report = inspected(single, 4)
    assert (report["family"], report["tensors"], len(report["problems"])) == ("llama", 0, 1)
    assert "cut short" in report["problems"][0]


def test_a_family_that_is_only_planned_cannot_be_run_as_it_is(single: Path) -> None:
    edit_config(single, architectures=["Gemma2ForCausalLM"], model_type="gemma2")
    report = inspected(single, 4)
    assert report["family"] == "gemma2"
    assert "planned but not run" in report["problems"][0]


def test_a_conversion_that_was_not_finished(sources: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sources["conversion"], tmp_path / "model"))
    (folder / "blocks.1.safetensors").unlink()
    (folder / "norm.safetensors").unlink()
    (problem,) = inspected(folder, 4)["problems"]
    assert "2 parts are missing, blocks.1 first" in problem


NONE = ("{home}/nothing", "/no/such/file.gguf", "nosuch", "./nothing", "{home}", "opt-175b", "", "a\0b", "{home}/text")


@pytest.mark.parametrize("name", NONE)
def test_what_is_not_there_is_a_wrong_call(tmp_path: Path, name: str) -> None:
    (tmp_path / "text").write_text("text")
    for args in ((), ("--json",)):
        result = run_command("inspect", name.format(home=tmp_path), *args)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("bigrun: ")


def test_of_a_model_of_140_gb_no_weight_is_read(tmp_path: Path) -> None:
    """Llama 2 70B, all holes: a page of its file that is read would be a page that takes memory, and time."""
    from bigrun.model.families.registry import BY_NAME, spec_from_config

    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "torch_dtype": "float16", "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec, entries, end = spec_from_config(config, "70b"), {}, 0
    for part in spec.parts:
        for group in BY_NAME["llama"].tensors(spec, part.name, "hf").values():
            for source in group:
                begin, end = end, end + 2 * source.shape[0] * (source.shape[1] if len(source.shape) > 1 else 1)
                entries[source.name] = {"dtype": "F16", "shape": source.shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(tmp_path / "model.safetensors", 8 + len(text) + end)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    report = inspected(tmp_path)
    assert time.perf_counter() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000
    assert (report["parameters"], report["bytes"]) == (68_976_648_192, 2 * 68_976_648_192)
    assert report["int8_bytes"] > 68_900_000_000
    assert (tmp_path / "model.safetensors").stat().st_blocks * 512 < 2**20


# The hub


@pytest.fixture
def hub(sources: dict[str, Path]) -> Iterator[Hub]:
    names = ("single", "sharded")
    server = Hub(Answers({(f"some/{name}", "main"): sources[name] for name in names}))
    yield server
    server.close()


def remote(hub: Hub, cache: Path, *args: str) -> Done:
    return run_process("inspect", *args, "--json", env=environment(hub, cache))


@pytest.mark.parametrize("name", ["single", "sharded"])
def test_a_hub_id_is_inspected_by_its_headers(hub: Hub, sources: dict[str, Path], tmp_path: Path, name: str) -> None:
    done = remote(hub, tmp_path, f"some/{name}")
    assert (done.returncode, done.stderr) == (0, "")
    report, here = json.loads(done.stdout), inspected(sources[name])
    assert report["format"] == f"safetensors on the hub, commit {COMMIT[:12]}"
    for field in (
        "family",
        "parameters",
        "context_tokens",
        "dtypes",
        "tensors",
        "files",
        "bytes",
        "int8_bytes",
        "tokenizer",
        "problems",
        "ignored",
    ):
        assert report[field] == here[field], field
    assert not list(tmp_path.rglob("*.safetensors"))
    gets = [request for request in hub.log if request.method == "GET" and request.path.endswith(".safetensors")]
    assert all(request.range is not None and request.range.startswith("bytes=0-") for request in gets)


def test_a_hub_id_whose_headers_do_not_fit_or_that_is_not_there(hub: Hub, single: Path, tmp_path: Path) -> None:
    edit_config(single, num_hidden_layers=3)
    hub.answers.repos["some/single", "main"] = single
    done = remote(hub, tmp_path / "cache", "some/single")
    assert done.returncode == 4
    problems = json.loads(done.stdout)["problems"]
    assert len(problems) == 9
    assert all("model.layers.2." in problem for problem in problems)
    assert len(done.stderr.splitlines()) == 1
    done = remote(hub, tmp_path / "cache", "no/such")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
