"""Names that bite: a package called `kernels`, a module called `bigrun.plan`, a folder called tests/kernels."""

import importlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_kernels_is_a_plain_container() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "tests" / "kernels").exists()
    assert (ROOT / "kernels" / "bigrun_kernels" / "__init__.py").exists()


def test_transformers_imports_its_llama_from_the_roots_folder() -> None:
    code = "from transformers.models.llama.modeling_llama import LlamaForCausalLM"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_plan_stays_a_function_whatever_is_imported() -> None:
    import bigrun

    for module in (
        "bigrun.planning.plan",
        "bigrun.planning.planner",
        "bigrun.session.runner",
        "bigrun.session.dry_run",
        "bigrun.cli.app",
    ):
        importlib.import_module(module)
    assert callable(bigrun.plan)


def test_kernels_import_nothing_of_bigrun() -> None:
    for file in (ROOT / "kernels").rglob("*.py"):
        for line in file.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] != "bigrun", f"{file}: {line}"


def test_every_public_name_is_there() -> None:
    import bigrun

    for name in bigrun.__all__:
        assert getattr(bigrun, name) is not None
    assert bigrun.__version__ == importlib.import_module("bigrun.version").__version__
