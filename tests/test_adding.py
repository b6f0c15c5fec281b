"""The guides docs/adding-a-*.md and docs/adding-an-op.md: their code is executed, and does what they say."""

import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bigrun import Runner, plan
from bigrun.cli.app import main
from bigrun.errors import CheckpointError
from bigrun.execute import compiled, forward
from bigrun.loading.open import FOLDERS
from bigrun.model import program
from bigrun.model.families import registry
from bigrun.model.program import unsupported
from bigrun_kernels.cpu import blocks
from bigrun_kernels.cpu.ops import CpuOps
from bigrun_kernels.gpu.torch_ops import TorchOps
from bigrun_kernels.gpu.triton_ops import TritonOps
from bigrun_kernels.ops import EXECUTES
from bigrun_kernels.reference_ops import ReferenceOps
from support.blocks import BLOCK, Model, rows, walked
from support.checkpoints import edit_config, llama, rewrite, state
from support.commands import ended, run_command

DOCS = Path(__file__).parent.parent / "docs"
TABLES: tuple[Any, ...] = (
    *EXECUTES.values(), forward.EXECUTE, blocks.ROWS, compiled.ARGUMENTS, registry.BY_NAME, registry.BY_ARCHITECTURE,
    FOLDERS, main.commands,
)  # fmt: skip


@pytest.fixture
def guide(tmp_path: Path) -> Iterator[Any]:
    """Runs the code of a guide; what it has entered in any table is taken out afterwards."""
    before = [dict(table) for table in TABLES]

    def run(name: str) -> ModuleType:
        code = "\n\n".join(re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL))
        file = tmp_path / f"{Path(name).stem.replace('-', '_')}.py"
        file.write_text(code)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield run
    for table, was in zip(TABLES, before, strict=True):
        table.clear()
        table.update(was)
    for backend in (CpuOps, ReferenceOps, TorchOps, TritonOps):
        if hasattr(backend, "scale"):
            del backend.scale


def test_an_op_is_added_as_its_guide_says(guide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Model(BLOCK, True).step(rows(9), [0] * 9, range(9))
    step = program.Step("scale", ("x",), "x", attributes=(("factor", 0.5),), width=BLOCK.hidden)
    lowered = program.lower(BLOCK)
    unknown = program.rewrite(program.Program((*lowered.steps, step), lowered.widths), "host")
    assert "the step scale" in unsupported(unknown, "host")
    toy = guide("adding-an-op.md")
    scaled = toy.with_scale(lowered, BLOCK.hidden, 0.5)
    for target in EXECUTES:
        assert unsupported(program.rewrite(scaled, target), target) == ""
        other = toy.with_scale(lowered, BLOCK.hidden, 0.5).steps[-1]
        wrong = replace(other, attributes=(*other.attributes, ("shift", 1)))
        assert "scale with shift" in unsupported(program.Program((wrong,), ()), target)
    monkeypatch.setattr("support.blocks.lower", lambda block: toy.with_scale(lowered, block.hidden, 0.5))
    both = [Model(BLOCK, form).step(rows(9), [0] * 9, range(9)) for form in (True, False)]
    assert np.array_equal(both[0], both[1]), "the compiled call and the walker, to the bit"
    assert not np.array_equal(both[0], plain)
    x = torch.from_numpy(rows(70))
    backends: tuple[Any, ...] = (TorchOps, TritonOps)
    for backend in backends:
        mine = x.clone()
        backend.scale(None, mine, 0.5)
        assert torch.equal(mine, toy.scale_reference(x, 0.5)), backend
    cpu, reference = walked(BLOCK, "exact")
    assert torch.allclose(cpu, reference, rtol=1e-4, atol=1e-4)


def test_a_factor_of_one_changes_nothing(guide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Model(BLOCK, True).step(rows(40), [0] * 40, range(40))
    toy, lowered = guide("adding-an-op.md"), program.lower(BLOCK)
    monkeypatch.setattr("support.blocks.lower", lambda block: toy.with_scale(lowered, block.hidden, 1.0))
    assert np.array_equal(Model(BLOCK, True).step(rows(40), [0] * 40, range(40)), plain)


def test_a_family_is_added_as_its_guide_says(guide: Any, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "llama", tmp_path / "toy"
    names = {
        "model.embed_tokens": "words", "model.norm": "last_norm", "lm_head": "logits", "model.layers": "layers",
        "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "out",
        "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down", "post_attention_layernorm": "mlp_norm",
        "input_layernorm": "attention_norm",
    }  # fmt: skip

    def renamed(name: str) -> str:
        for old, new in names.items():
            name = name.replace(old, new)
        return name

    for folder in (theirs, ours):
        llama(folder, layers=3)
    rewrite(ours, {renamed(name): value for name, value in state(ours).items()})
    edit_config(ours, architectures=["ToyForCausalLM"], model_type="toy")
    rig: dict[str, Any] = {"gpus": "none", "cpu": "100MB", "context": 64}
    with pytest.raises(CheckpointError, match="architecture 'ToyForCausalLM' is unknown"):
        plan(str(ours), **rig)
    guide("adding-a-family.md")
    made = plan(str(ours), **rig)
    assert (made.family, made.parameters) == ("toy", plan(str(theirs), **rig).parameters)
    assert made.to_device_map()["layers.2"] == "cpu"
    ids = np.arange(5, 25)[None]
    with Runner(str(theirs), progress=False, **rig) as llamas, Runner(str(ours), progress=False, **rig) as toys:
        assert np.array_equal(toys.logits(ids), llamas.logits(ids))


def arrays(folder: Path) -> None:
    """A checkpoint of the guide's format; its matrices in 16 bits."""
    llama(folder, layers=3, dtype="float16", tokenizer=True)
    (folder / "arrays").mkdir()
    for name, value in state(folder).items():
        np.save(folder / "arrays" / f"{name}.npy", value.numpy())
    for file in folder.glob("*.safetensors"):
        file.unlink()


def test_a_format_is_added_as_its_guide_says(guide: Any, tmp_path: Path) -> None:
    llama(tmp_path / "theirs", layers=3, dtype="float16", tokenizer=True)
    arrays(tmp_path / "ours")
    rig: dict[str, Any] = {"gpus": "none", "cpu": "100MB", "context": 64, "progress": False}
    with pytest.raises(CheckpointError, match="holds neither"):
        Runner(str(tmp_path / "ours"), **rig)
    guide("adding-a-format.md")
    ids = np.arange(5, 25)[None]
    with Runner(str(tmp_path / "theirs"), **rig) as theirs, Runner(str(tmp_path / "ours"), **rig) as ours:
        assert np.array_equal(ours.logits(ids), theirs.logits(ids))
    seen = run_command("inspect", tmp_path / "ours", "--json")
    assert (seen.exit_code, json.loads(seen.stdout)["format"]) == (0, "arrays")


def linked(target: str) -> Callable[[Path], object]:
    def change(file: Path) -> None:
        file.unlink()
        file.symlink_to(target)

    return change


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda file: os.truncate(file, file.stat().st_size - 8), "no array that can be read"),
    "empty": (lambda file: os.truncate(file, 0), "no array that can be read"),
    "objects": (lambda file: np.save(file, np.array([{}]), allow_pickle=True), "no array that can be read"),
    "another shape": (lambda file: np.save(file, np.zeros((2, 32), np.float16)), "shape"),
    "another kind": (lambda file: np.save(file, np.zeros(64, np.int64)), "int64"),
    "missing": (lambda file: file.unlink(), "missing"),
    "a link to text": (linked("/etc/hostname"), "no array that can be read"),
    "a link into the kernel": (linked("/proc/self/mounts"), "no array that can be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_of_the_guide_s_format_is_refused(guide: Any, tmp_path: Path, name: str) -> None:
    damage, words = DAMAGES[name]
    guide("adding-a-format.md")
    arrays(tmp_path / "model")
    damage(tmp_path / "model" / "arrays" / "model.layers.1.input_layernorm.weight.npy")
    ended(
        run_command(
            "generate", "--model", tmp_path / "model", "--gpus", "none", "--cpu", "1GB", "--prompt", "x", "--quiet"
        ),
        4,
        "model.layers.1.input_layernorm.weight",
        words,
    )


def test_a_command_is_added_as_its_guide_says(guide: Any, tmp_path: Path) -> None:
    llama(tmp_path / "model", max_shard_size="60KB")
    ended(run_command("tensors", tmp_path / "model"), 2, "No such command")
    guide("adding-a-command.md")
    listed = json.loads(run_command("tensors", tmp_path / "model", "--json").stdout)
    assert {t["name"]: (t["shape"], t["bytes"]) for t in listed} == {
        name: (list(value.shape), value.nbytes) for name, value in state(tmp_path / "model").items()
    }
    text = run_command("tensors", tmp_path / "model").stdout
    assert "model.norm.weight: F32 [64], 256 B" in text.splitlines()
    assert "Which tensors" in run_command("--help").stdout
    ended(run_command("tensors", tmp_path / "none"), 2, "none")
