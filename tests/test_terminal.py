"""What is quoted from files that strangers wrote (names, values, messages of templates) reaches a terminal escaped, on both
outputs: an escape sequence would rewrite what stands there, a newline forge a line, a bidirectional override turn one around,
half a surrogate pair end the command."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from bigrun.loading.manifest import read_manifest
from support.checkpoints import edit_config, gguf_twin, rewrite, state, write_tokenizer
from support.commands import run_command

EVIL = "x\x1b]0;title\x07\x9b31m\u202egnp\nbigrun: all is well\r\x7f\u2028\ud800"
TAME = EVIL[:-1]  # for what cannot hold half a surrogate pair
RIG = ("--gpus", "none", "--cpu", "1GB")


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "llama"))


def harmless(result: Result, status: int, quoted: bool = True) -> None:
    """It ended as it should, and nothing that it said moves a cursor, or is a line of its own."""
    assert result.exit_code == status, result.output.encode("unicode_escape")
    assert "(a bug" not in result.stderr
    for output in (result.stdout, result.stderr):
        strange = {c for c in output if not c.isprintable() and c != "\n"}
        assert not strange, output.encode("unicode_escape")
        assert "\nbigrun: all is well" not in output
    if quoted:
        assert "1b]0;title" in result.stdout + result.stderr  # what follows the escaped escape


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


CONFIGS: dict[str, dict[str, Any]] = {
    "an architecture": {"architectures": [EVIL]},
    "a dtype": {"dtype": EVIL, "torch_dtype": EVIL},
    "an activation": {"hidden_act": EVIL},
    "a kind of rope": {"rope_parameters": {"rope_type": EVIL, "rope_theta": 1e4}},
    "a size": {"hidden_size": EVIL},
}


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS.keys())
def test_what_is_quoted_of_a_configuration(model: Path, fields: dict[str, Any]) -> None:
    edit_config(model, **fields)
    for args in (("plan", "--model", model, *RIG), ("inspect", model), ("inspect", model, "--json")):
        harmless(run_command(*args), 4)


def extra_tensor(model: Path) -> None:
    rewrite(model, {**state(model), TAME: torch.ones(3)})


def odd_dtype(model: Path) -> None:
    file = model / "model.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["model.norm.weight"]["dtype"] = EVIL
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def odd_shard(model: Path) -> None:
    names = dict.fromkeys(state(model), "model.safetensors") | {"model.norm.weight": EVIL}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def torch_tensor(model: Path) -> None:
    torch.save({**state(model), TAME: torch.ones(3)}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


WEIGHTS = {
    "the name of a tensor": extra_tensor, "a dtype": odd_dtype, "the name of a file": odd_shard,
    "the name of a tensor in torch's file": torch_tensor,
}  # fmt: skip


@pytest.mark.parametrize("damage", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_what_is_quoted_of_the_files_of_weights(model: Path, damage: Callable[[Path], None]) -> None:
    damage(model)
    generate = ("generate", "--model", model, *RIG, "--prompt", "the")
    for args in (("inspect", model), ("inspect", model, "--json"), generate, (*generate, "--quiet")):
        harmless(run_command(*args), 4, quoted=damage is not odd_dtype)


GGUF = {
    "a kind of rope": {"rope__scaling__type": TAME},
    "a count": {"attention__head_count": TAME},
}


@pytest.mark.parametrize("metadata", GGUF.values(), ids=GGUF.keys())
def test_what_is_quoted_of_the_metadata_of_gguf(tiny: Path, tmp_path: Path, metadata: dict[str, Any]) -> None:
    gguf_twin(tiny, tmp_path / "a.gguf", **metadata)
    for args in (("plan", "--model", tmp_path / "a.gguf", *RIG), ("inspect", tmp_path / "a.gguf")):
        harmless(run_command(*args), 4, quoted=False)


@pytest.mark.parametrize(
    ("old", "status"), [(b"gpt2", 4), (b"smollm", 4), (b"output_norm.weight", 4), (b"llama", 4)], ids=str
)
def test_what_is_quoted_of_the_strings_of_gguf(tiny: Path, tmp_path: Path, old: bytes, status: int) -> None:
    """Each string that the file has is replaced by one as long, which holds an escape sequence and a newline."""
    gguf_twin(tiny, tmp_path / "a.gguf")
    data = (tmp_path / "a.gguf").read_bytes()
    named = len(old).to_bytes(8, "little") + old
    assert named in data
    bad = len(old).to_bytes(8, "little") + b"\x1b[\n\x7f".ljust(len(old), b"z")
    (tmp_path / "a.gguf").write_bytes(data.replace(named, bad))
    for more in ((), ("--json",)):
        result = run_command("inspect", tmp_path / "a.gguf", *more)
        harmless(result, status, quoted=False)
        assert "x1b[" in result.stdout or "u001b[" in result.stdout


TEMPLATES = {
    "a template's own message": f"{{{{ raise_exception({TAME!r}) }}}}",
    "what is no template": f"{{% {TAME} %}}",
    "an unknown filter": f"{{{{ 1 | float_{TAME} }}}}",
}  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_what_is_quoted_of_a_chat_template(model: Path, template: str) -> None:
    write_tokenizer(model, chat_template=template)
    status = 2 if "raise_exception" in template else 4  # it refuses the messages, or is none
    result = run_command("generate", "--model", model, *RIG, "--prompt", "the", "--quiet")
    harmless(result, status, quoted=status == 2)


@pytest.mark.parametrize("part", ["model", "pre_tokenizer", "decoder", "normalizer"])
def test_what_is_quoted_of_a_tokenizer(model: Path, part: str) -> None:
    edit_json(model / "tokenizer.json", **{part: {"type": EVIL}})
    for args in (("inspect", model), ("generate", "--model", model, *RIG, "--prompt", "the", "--quiet")):
        harmless(run_command(*args), 4, quoted=False)


RIGS: dict[str, Any] = {
    "a card": {"gpus": [{"card": EVIL}]}, "a key": {"gpus": [{"memory": "1GB", EVIL: 1}]}, "a size": {"cpu": {"memory": EVIL}},
    "a device": {EVIL: 1}, "a link": {"gpus": [{"memory": "1GB", "link": EVIL}]},
}  # fmt: skip


@pytest.mark.parametrize("rig", RIGS.values(), ids=RIGS.keys())
def test_what_is_quoted_of_a_rig_file(tmp_path: Path, rig: dict[str, Any]) -> None:
    (tmp_path / "rig.json").write_text(json.dumps(rig))
    harmless(run_command("plan", "--model", "opt-6.7b", "--rig", tmp_path / "rig.json"), 2, quoted=False)


@pytest.mark.parametrize("field", ["cpu", "measured_on", "kernels"])
def test_what_is_quoted_of_a_host_file(tmp_path: Path, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigrun.devices.host_file import Host, machine, write

    changed: dict[str, Any] = {field: TAME}
    write(replace(Host(*machine(), "avx2", "2026-01-31", 1e10, 1e12, 1e11), **changed), tmp_path / "host.json")
    args = ("plan", "--model", "opt-6.7b", *RIG[:2], "--cpu", "100GB")
    harmless(run_command(*args, "--host", tmp_path / "host.json"), 2)
    monkeypatch.setenv("BIGRUN_HOST", str(tmp_path / "host.json"))
    harmless(run_command(*args), 0, quoted=False)


@pytest.mark.parametrize("field", ["model", "family", "model_id", "weights", "kv"])
def test_what_is_quoted_of_a_plan_file(tiny: Path, tmp_path: Path, field: str) -> None:
    made = json.loads(run_command("plan", "--model", tiny, *RIG, "--json").stdout)
    (tmp_path / "plan.json").write_text(json.dumps(made | {field: EVIL}))
    args = ("generate", "--plan", tmp_path / "plan.json", "--prompt", "the", "--json")
    result = run_command(*args)
    assert result.exit_code in (0, 2)  # the name alone changes nothing
    harmless(result, result.exit_code, quoted=False)


@pytest.mark.parametrize("field", ["model", "source", "created"])
def test_what_is_quoted_of_the_manifest_of_a_conversion(model: Path, tmp_path: Path, field: str) -> None:
    """Its digest finds damage; a stranger can compute it too."""
    folder = tmp_path / "conversion"
    assert run_command("convert", "--model", model, "--out", folder, "--quiet").exit_code == 0
    changed: dict[str, Any] = {field: EVIL}
    replace(read_manifest(folder), **changed).write(folder)
    harmless(run_command("cache", "list", folder), 0)
    harmless(run_command("cache", "list", folder, "--json"), 0)
    harmless(run_command("cache", "verify", folder), 0, quoted=False)
    (model / "model.safetensors").touch()  # it has changed since, which is why the conversion would go
    for more in ((), ("--json",)):
        harmless(run_command("cache", "prune", folder, "--all", "--dry-run", *more), 0, quoted=False)


def test_what_is_generated_is_escaped_in_json_and_keeps_its_letters(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigrun.session.generation import Stream

    said = "é 漢字 " + TAME
    monkeypatch.setattr(Stream, "__iter__", lambda self: iter((said,)))
    result = run_command("generate", "--model", tiny, *RIG, "--prompt", "the", "--quiet", "--json")
    harmless(result, 0)
    assert json.loads(result.stdout)["text"] == said
    assert "é 漢字" in result.stdout
