"""Planning a hub id reads its config.json and the headers of its safetensors, never the weights: against a server on this
host that answers as the hub does and counts what it sends."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigrun.checkpoint.base import TensorInfo
from bigrun.checkpoint.hub.download import _first_missing
from bigrun.checkpoint.hub.headers import FIRST_BYTES, Headers, HubFiles, check
from bigrun.errors import CheckpointError
from bigrun.model.families.registry import BY_NAME, spec_from_config
from support.checkpoints import edit_config, llama
from support.commands import Done, ended, run_process, run_python
from support.hub import URL, Answers, Hub, environment

RIG = ("--gpus", "none", "--cpu", "8GB")
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    llama(home / "shards", max_shard_size="60KB")
    llama(home / "one", hidden=256, intermediate=640, dtype="bfloat16")
    return home


@pytest.fixture
def hub(models: Path) -> Iterator[Hub]:
    repos = {("some/shards", "main"): models / "shards", ("some/one", "main"): models / "one"}
    server = Hub(Answers(repos))
    yield server
    server.close()


def plan(hub: Hub, cache: Path, model: str, *args: str, **more: str) -> Done:
    return run_process("plan", "--model", model, *RIG, "--json", *args, env=environment(hub, cache, **more))


def planned(done: Done) -> Any:
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def parameters(folder: Path) -> int:
    return spec_from_config(json.loads((folder / "config.json").read_text()), "x").parameters


@pytest.mark.parametrize("name", ["shards", "one"])
def test_a_plan_reads_the_configuration_and_the_headers_alone(
    hub: Hub, models: Path, tmp_path: Path, name: str
) -> None:
    made = planned(plan(hub, tmp_path, f"some/{name}"))
    assert made["parameters"] == parameters(models / name)
    weights = {file.name: file.stat().st_size for file in (models / name).glob("*.safetensors")}
    sent = hub.sent()
    assert weights.keys() <= sent.keys(), "every header is read"
    assert all(sent[file] <= FIRST_BYTES for file in weights)
    assert not sent.keys() - weights.keys() - {"config.json", "model.safetensors.index.json", "model.safetensors"}
    gets = [request for request in hub.log if request.method == "GET" and request.path.endswith(".safetensors")]
    assert {request.range for request in gets} == {f"bytes=0-{FIRST_BYTES - 1}"}
    if name == "one":
        assert weights["model.safetensors"] > 3_000_000
    else:
        assert len(weights) > 3
        assert sum(sent.values()) < 2 * sum(weights.values())


def test_the_second_plan_is_made_offline_from_the_cached_configuration(hub: Hub, models: Path, tmp_path: Path) -> None:
    first = planned(plan(hub, tmp_path, "some/one"))
    asked = len(hub.log)
    offline = planned(plan(hub, tmp_path, "some/one", HF_HUB_OFFLINE="1"))
    assert len(hub.log) == asked
    hub.answers.status = 500
    down = planned(plan(hub, tmp_path, "some/one"))
    assert len(hub.log) == asked + 1
    hub.close()
    gone = planned(plan(hub, tmp_path, "some/one"))
    assert first["parameters"] == offline["parameters"] == down["parameters"] == gone["parameters"]


def test_the_revision_is_passed_on(hub: Hub, models: Path, tmp_path: Path) -> None:
    hub.answers.repos["some/one", "v2"] = models / "shards"
    assert planned(plan(hub, tmp_path, "some/one", "--revision", "v2"))["parameters"] == parameters(models / "shards")
    assert {URL.fullmatch(request.path)[3] for request in hub.log} == {"v2"}  # type: ignore[index]


def test_large_files_are_read_where_they_redirect_to_and_the_token_stays(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    cdn = Hub(Answers(hub.answers.repos))
    hub.answers.cdn = cdn.url
    try:
        planned(plan(hub, tmp_path, "some/one", HF_TOKEN="secret"))
    finally:
        cdn.close()
    assert {request.token for request in hub.log} == {"Bearer secret"}
    assert [(request.token, request.sent) for request in cdn.log] == [(None, FIRST_BYTES)]


def test_a_catalog_name_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    for name in ("opt-6.7b", "facebook/opt-6.7b"):
        planned(plan(hub, tmp_path, name))
    assert not hub.log


def header(folder: Path) -> dict[str, Any]:
    """The header of a folder's model.safetensors."""
    raw = (folder / "model.safetensors").read_bytes()
    return dict(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]))


def write(path: Path, head: Any, data: int | None = None, length: int | None = None, padding: int = 0) -> None:
    """A safetensors file of zeros that take no space: what its header describes, or `data` bytes."""
    raw = head if isinstance(head, bytes) else json.dumps(head).encode() + b" " * padding
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw)
    if data is None:
        data = max(entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__")
    os.truncate(path, 8 + len(raw) + data)


@pytest.mark.parametrize("ignores", [False, True])
def test_a_long_header_and_a_server_that_ignores_ranges(hub: Hub, models: Path, tmp_path: Path, ignores: bool) -> None:
    """270 MB of weights; the header's padding is more than one request brings."""
    (tmp_path / "config.json").write_bytes((models / "one" / "config.json").read_bytes())
    edit_config(tmp_path, vocab_size=2**18)
    head, at = header(models / "one"), 0
    head.pop("__metadata__")
    for entry in head.values():
        entry["shape"][0] = 2**18 if entry["shape"][0] == 320 else entry["shape"][0]
        nbytes = 2 * entry["shape"][0] * (entry["shape"] + [1])[1]
        entry["data_offsets"] = [at, at := at + nbytes]
    write(tmp_path / "model.safetensors", head, padding=150_000)
    hub.answers.repos["some/large", "main"] = tmp_path
    hub.answers.ignores_ranges = ignores
    assert planned(plan(hub, tmp_path / "cache", "some/large"))["parameters"] == parameters(tmp_path) > 2**27
    gets = [request for request in hub.log if request.method == "GET" and request.path.endswith(".safetensors")]
    assert len(gets) == 2
    assert int(gets[1].range.partition("-")[0][6:]) == FIRST_BYTES  # type: ignore[union-attr]
    if ignores:  # what the sockets between hold is sent, too
        assert max(request.sent for request in gets) < 32 * 2**20
    else:
        assert 150_000 < sum(request.sent for request in gets) < 170_000


GATED = {"status": 403, "code": "GatedRepo"}
FAILURES: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "gated": (GATED, "some/one", 2, "some/one: gated"),
    "no such model": ({}, "some/nothing", 2, "some/nothing: no such model"),
    "no such revision": ({}, "some/one --revision v9", 2, "some/one: no such revision"),
    "the server fails": ({"status": 500}, "some/one", 1, "500"),
    "weights gated": (GATED | {"failing": ".safetensors"}, "some/one", 2, "some/one: gated"),
    "weights fail": ({"status": 503, "failing": ".safetensors"}, "some/one", 1, "503"),
    "no configuration": ({"status": 404, "code": "EntryNotFound", "failing": "config.json"}, "some/one", 1, "404"),
}


@pytest.mark.parametrize("case", FAILURES.values(), ids=FAILURES.keys())
def test_a_hub_that_says_no(hub: Hub, tmp_path: Path, case: tuple[dict[str, Any], str, int, str]) -> None:
    faults, call, status, words = case
    vars(hub.answers).update(faults)
    done = plan(hub, tmp_path, *call.split())
    ended(done, status, words)


def test_no_hub_at_all(hub: Hub, tmp_path: Path) -> None:
    hub.close()
    done = plan(hub, tmp_path, "some/one")
    ended(done, 1, "some/one: not in the local cache", "cannot be reached")


Case = tuple[Callable[[Path, dict[str, Any]], object], str]
NORM = "model.norm.weight"
FILE = "model.safetensors"


def entry(**fields: Any) -> Callable[[Path, dict[str, Any]], object]:
    """model.safetensors with these fields in the entry of the last norm, a vector of 256 in bfloat16."""

    def damage(folder: Path, head: dict[str, Any]) -> None:
        data = max(entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__")
        write(folder / FILE, head | {NORM: head[NORM] | fields}, data)

    return damage


def index(content: Any) -> Callable[[Path, dict[str, Any]], object]:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda folder, _: (folder / f"{FILE}.index.json").write_text(text)


def named(*files: Any) -> Callable[[Path, dict[str, Any]], object]:
    return index({"weight_map": {str(number): file for number, file in enumerate(files)}})


BAD: dict[str, Case] = {
    "another shape": (entry(shape=[2, 128]), NORM),
    "a layer missing": (lambda f, _: edit_config(f, num_hidden_layers=3), "layers.2"),
    "a length of 2⁶⁴": (lambda f, h: write(f / FILE, h, length=2**64 - 1), FILE),
    "a length of 26 MB": (lambda f, h: write(f / FILE, h, length=26_000_000), FILE),
    "a length beyond the file": (lambda f, h: write(f / FILE, h, length=9_000_000), "ends before"),
    "an empty file": (lambda f, _: (f / FILE).write_bytes(b""), "cut short"),
    "four bytes": (lambda f, _: (f / FILE).write_bytes(b"four"), "ends before"),
    "cut short": (lambda f, _: os.truncate(f / FILE, 1_000_000), "1000000 bytes"),
    "no JSON": (lambda f, _: write(f / FILE, b'{"a', 0), "JSON"), "an array": (lambda f, _: write(f / FILE, b"[1]", 0), "JSON"),
    "deep": (lambda f, _: write(f / FILE, b"[" * 90_000, 0), "JSON"),
    "no UTF-8": (lambda f, _: write(f / FILE, b"{\xff", 0), "JSON"),
    "no tensors": (lambda f, _: write(f / FILE, b"{}", 0), "missing"),
    "an entry that is none": (lambda f, h: write(f / FILE, h | {NORM: 1}, 9), NORM),
    "a shape of text": (entry(shape="256"), NORM), "a shape below zero": (entry(shape=[-256]), NORM),
    "a fraction": (entry(shape=[256.0]), NORM), "true": (entry(shape=[256, True]), NORM),
    "a shape without end": (entry(shape=[2**52] * 4), NORM), "no offsets": (entry(data_offsets=None), NORM),
    "offsets below zero": (entry(data_offsets=[-512, 0]), NORM), "offsets reversed": (entry(data_offsets=[512, 0]), NORM),
    "one offset": (entry(data_offsets=[512]), NORM), "too few bytes": (entry(data_offsets=[0, 510]), NORM),
    "no dtype": (entry(dtype=16), NORM), "another dtype": (entry(dtype="F32"), NORM),
    "a gap": (lambda f, h: write(f / FILE, {NORM: h[NORM] | {"data_offsets": [8, 520]}}), "gaps"),
    "an index outside": (named("../x"), "'../x'"), "an absolute one": (named("/x"), "'/x'"),
    "a backslash": (named("a\\b"), "index"), "a NUL": (named("a\0b"), "index"), "an index of numbers": (named(1), "weight_map"),
    "of nothing": (named(), "0 files"), "of 2,001 files": (named(*map(str, range(2001))), "2001"),
    "an index without files": (index({}), "weight_map"), "an index cut": (index('{"w'), "JSON"),
    "a file of the index missing": (named(FILE, "x.safetensors"), "x.safetensors: missing"),
    "a configuration too large": (lambda f, _: os.truncate(f / "config.json", 2**20 + 1), "larger than 1 MiB"),
    "an index too large": (index(" " * (65 * 2**20)), "larger than 64 MiB"),
}  # fmt: skip

SCRIPT = """
import json, sys
from support.commands import run_command
for arguments in json.load(sys.stdin):
    done = run_command(*arguments)
    print(json.dumps([done.exit_code, done.stdout, done.stderr]))
"""


@pytest.fixture(scope="module")
def bad(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """How a plan of each case ends; one process for all, since it is the process that takes the time."""
    home, server, calls = tmp_path_factory.mktemp("bad"), Hub(Answers()), []
    head = header(models / "one")
    for number, (damage, _) in enumerate(BAD.values()):
        folder = home / str(number)
        folder.mkdir()
        (folder / "config.json").write_bytes((models / "one" / "config.json").read_bytes())
        write(folder / FILE, head)
        damage(folder, json.loads(json.dumps(head)))
        server.answers.repos[f"bad/{number}", "main"] = folder
        calls.append(["plan", "--model", f"bad/{number}", *RIG])
    done = run_python(SCRIPT, stdin=json.dumps(calls), env=environment(server, home / "cache", PYTHONPATH=str(TESTS)))
    server.close()
    assert done.returncode == 0, done.stderr
    return {
        name: Done(call, *json.loads(said))
        for name, call, said in zip(BAD, calls, done.stdout.splitlines(), strict=True)
    }


@pytest.mark.parametrize("name", BAD)
def test_headers_that_lie(bad: dict[str, Done], name: str) -> None:
    ended(bad[name], 4, f"bad/{list(BAD).index(name)}: ", BAD[name][1])


def test_the_headers_of_all_files_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from bigrun.checkpoint.hub import headers

    read: list[str] = []

    def header(_repo: str, file: str, _revision: str | None) -> tuple[int, dict[str, Any]]:
        read.append(file)
        return 2**25, {}

    content = json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(2000)}}).encode()
    monkeypatch.setattr(headers, "read_range", lambda *_: (content, None))
    monkeypatch.setattr(headers, "_header", header)
    with pytest.raises(CheckpointError, match="256 MiB"):
        headers.headers("some/one", None)
    assert len(read) == 16


def test_what_headers_say(hub: Hub, models: Path, tmp_path: Path) -> None:
    program = (
        "from bigrun.checkpoint.hub.headers import headers; from bigrun.loading.open import model_spec\n"
        "from bigrun.model.resolve import resolve; found = headers('some/one', None)\n"
        "print(found.files, found.bytes, found.dtypes, len(found.tensors), found.tensors['model.norm.weight'].shape)\n"
        "print(model_spec(resolve('some/one')).checkpoint_bytes, headers('some/none', None))"
    )
    (tmp_path / "config.json").write_text("{}")  # and no safetensors
    hub.answers.repos["some/none", "main"] = tmp_path
    done = run_python(program, env=environment(hub, tmp_path / "cache"))
    count = parameters(models / "one")
    said = [f"1 {2 * count} (('BF16', {count}),) {len(header(models / 'one')) - 1} (256,)", f"{2 * count} None"]
    assert (done.stdout.splitlines(), done.stderr) == (said, "")


def test_names_without_the_model_class_s_prefix(models: Path) -> None:
    spec = spec_from_config(json.loads((models / "one" / "config.json").read_text()), "x")
    full = {name: tuple(entry["shape"]) for name, entry in header(models / "one").items() if name != "__metadata__"}
    bare = {name.removeprefix("model."): shape for name, shape in full.items()}
    for shapes in (full, bare):
        check(spec, hub_files(shapes))
    with pytest.raises(CheckpointError, match=r"tensor norm\.weight is missing"):
        check(spec, hub_files({name: shape for name, shape in bare.items() if name != "norm.weight"}))


def test_an_index_that_its_shards_have_left_is_passed_over_for_a_single_file(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    """As on this disk (formats/safetensors.py: chosen): by a plan, and by a run, online and from the cache."""
    import shutil

    path = Path(shutil.copytree(models / "one", tmp_path / "model"))
    names = [name for name in header(path) if name != "__metadata__"]
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "gone.safetensors")})
    )
    hub.answers.repos["some/stale", "main"] = path
    cache = environment(hub, tmp_path / "cache")
    asked = ("--model", "some/stale", "--gpus", "none", "--cpu", "1GB")
    assert run_process("plan", *asked, "--json", env=cache).returncode == 0
    done = run_process("bench", *asked, "--prompt-tokens", "4", "--new-tokens", "2", env=cache)
    assert done.returncode == 0, done.stderr
    (snapshot,) = (tmp_path / "cache").rglob("snapshots/*")
    assert _first_missing("some/stale", snapshot) is None, "all that a run needs without the hub"


def test_float8_is_readable_by_scales_that_fit_it_before_it_is_fetched() -> None:
    """And its scales count among the bytes that are to be loaded."""
    scales = {"fits": (4, 2), "by rows": (512, 1), "of another size": (3, 2), "of none": None}
    tensors = {}
    for name, shape in scales.items():
        tensors[name] = TensorInfo("F8_E4M3", (512, 256), 512 * 256, True, "")
        if shape is not None:
            tensors[f"{name}_scale_inv"] = TensorInfo("F32", shape, 4 * shape[0] * shape[1], True, "")
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    files = HubFiles("some/one", config, Headers(1, 0, (), tensors)).tensors
    told = {name: (files[name].readable, files[name].scale_bytes) for name in scales}
    assert told == {
        "fits": (True, 32), "by rows": (True, 2048), "of another size": (False, 0), "of none": (False, 0),
    }  # fmt: skip
    assert "fits_scale_inv" not in files


def hub_files(shapes: dict[str, tuple[int, ...]], dtype: str = "BF16") -> HubFiles:
    """What a hub would say of a model with these tensors."""
    tensors = {name: TensorInfo(dtype, shape, 0, True, "") for name, shape in shapes.items()}
    return HubFiles("some/one", {}, Headers(1, 0, (), tensors))


def test_a_family_without_a_list_of_tensors_has_its_parameters_counted(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    spec = spec_from_config(json.loads((models / "one" / "config.json").read_text()), "x")
    monkeypatch.setitem(BY_NAME, "llama", replace(BY_NAME["llama"], sources=None))
    for held in ({"BF16": 1.0}, {"BF16": 0.995, "I64": 5.0}, {"F16": 0.5, "F32": 0.7}, {"I32": 0.2, "F16": 0.1}):
        tensors = {f"of {t}": TensorInfo(t, (int(share * spec.parameters),), 0, True, "") for t, share in held.items()}
        check(spec, HubFiles("some/one", {}, Headers(1, 0, (), tensors)))
    head = (int(0.3 * spec.parameters), 1)
    check(replace(spec, tied=True), hub_files({"the rest": (spec.parameters,), "lm_head.weight": head}))
    for share in (0.5, 1.5):
        with pytest.raises(CheckpointError, match="describes"):
            check(spec, hub_files({"all": (int(share * spec.parameters),)}))
