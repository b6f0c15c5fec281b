"""Fetching a hub model's weights: what is needed and no more, of one commit, each file going on where it stopped. Against a
server on this host; one child process fetches for most tests, since huggingface_hub reads its settings when imported."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bigrun.checkpoint.hub import download
from support.commands import run_process
from support.hub import COMMIT, LARGE, Answers, Hub, environment

WORKER = """
import contextlib, io, json, shutil, sys
from types import SimpleNamespace
from huggingface_hub import constants
from bigrun.checkpoint.hub import download, hub
from bigrun.model.resolve import Model
usage = shutil.disk_usage
for line in sys.stdin:
    call, reports, said, answer = json.loads(line), [], io.StringIO(), {}
    constants.HF_HUB_CACHE, hub.PAUSES = call["cache"], tuple(call["pauses"])
    constants.HF_HUB_DISABLE_SYMLINKS = call["copies"]
    constants.HF_HUB_DISABLE_XET = not call["xet"]
    shutil.disk_usage = lambda path: usage(path) if call["free"] is None else SimpleNamespace(free=call["free"])
    def report(file, done, total):
        reports.append((file, done, total))
        if call["interrupt"] is not None and done >= call["interrupt"]:
            raise KeyboardInterrupt
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            if call["only_list"]:
                found = download.needed(call["repo"], call["revision"])
                answer = {"commit": found.commit, "files": found.files, "weights": found.weights}
            else:
                answer = {"folder": str(download.fetch(Model(call["repo"], repo=call["repo"]), call["revision"], report))}
        except (Exception, KeyboardInterrupt) as error:
            answer = {"kind": type(error).__name__, "message": str(error)}
    print(json.dumps({"reports": reports, "said": said.getvalue()} | answer), flush=True)
"""

Call = Callable[..., dict[str, Any]]
INDEX, CONFIG = download.INDEX, download.CONFIG
SHARDS = ("a-1.safetensors", "a-2.safetensors")
SIZE = 300_000  # of a shard: a few of the pieces that arrive
BESIDE = ("tokenizer.json", "generation_config.json", "chat_template.jinja")
VARIANTS = (
    "README.md", "model.fp16.safetensors", "fp16/model.safetensors", "onnx/model.onnx", "x-Q8_0.gguf", "flax_model.msgpack",
    "consolidated.00.pth", "original/consolidated.00.pth", "tf_model.h5", "pytorch_model.bin", "training_args.bin",
)  # fmt: skip


def content(name: str, version: int = 0) -> bytes:
    if not name.endswith(LARGE):
        return json.dumps({"name": name, "version": version}).encode()
    return hashlib.shake_256(f"{name} {version}".encode()).digest(SIZE)


def repository(folder: Path, *names: str, version: int = 0, shards: Any = SHARDS, index: str = INDEX) -> Path:
    """A folder of these files, an index of the shards, and the shards."""
    if shards:
        (folder / index).parent.mkdir(parents=True, exist_ok=True)
        weight_map = {"weight_map": {str(number): file for number, file in enumerate(shards)}}
        (folder / index).write_text(json.dumps(weight_map))
    for name in (*names, *(file for file in shards or () if isinstance(file, str) and ".." not in file)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(name, version))
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    hub = Hub(Answers())
    yield hub
    hub.close()


@pytest.fixture
def hub(server: Hub, tmp_path: Path) -> Hub:
    """The server with some/model: shards, with other variants beside them."""
    folder = repository(tmp_path / "model", CONFIG, *BESIDE, *VARIANTS)
    server.answers = Answers({("some/model", "main"): folder})
    server.log.clear()
    return server


@pytest.fixture(scope="module")
def worker(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator["subprocess.Popen[str]"]:
    env = environment(server, tmp_path_factory.mktemp("home"))
    child = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    with child:
        yield child


@pytest.fixture
def call(worker: "subprocess.Popen[str]", tmp_path: Path) -> Call:
    """Fetch some/model, or another, into a cache of the test's own: what came back, or the error."""

    def call(repo: str = "some/model", revision: str | None = None, **more: Any) -> dict[str, Any]:
        request: dict[str, Any]
        request = {"free": None, "interrupt": None, "only_list": False, "pauses": [], "copies": False, "xet": False}
        request |= {"cache": str(tmp_path / "cache"), "repo": repo, "revision": revision}
        assert not more.keys() - request.keys()
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps(request | more) + "\n")
        worker.stdin.flush()
        watch = threading.Timer(60, worker.kill)  # what never ends is an empty answer
        watch.start()
        answer: dict[str, Any] = json.loads(worker.stdout.readline())
        watch.cancel()
        return answer

    return call


def storage(cache: Path) -> Path:
    return cache / "models--some--model"


def partials(cache: Path) -> list[Path]:
    return list(cache.rglob("*.incomplete"))


def fetched(answer: dict[str, Any], source: Path) -> Path:
    """The snapshot: its files are those of the source, and huggingface_hub showed nothing of its own."""
    assert "folder" in answer, answer
    folder = Path(answer["folder"])
    for path in folder.rglob("*"):
        assert path.read_bytes() == (source / path.relative_to(folder)).read_bytes()
    assert len(answer["said"].splitlines()) <= 1, answer["said"]
    assert not partials(folder.parent.parent)
    return folder


def failed(answer: dict[str, Any], kind: str, *words: str) -> str:
    assert answer.get("kind") == kind, answer
    assert "\n" not in answer["message"]
    assert all(word in answer["message"] for word in words), answer
    return str(answer["message"])


def weights_sent(hub: Hub) -> int:
    return sum(count for name, count in hub.sent().items() if name.endswith(LARGE))


def model_folder(hub: Hub) -> Path:
    return hub.answers.repos["some/model", "main"]


def test_only_what_a_run_opens_is_fetched(hub: Hub, call: Call) -> None:
    answer = call()
    folder = fetched(answer, model_folder(hub))
    assert {path.name for path in folder.iterdir()} == {CONFIG, INDEX, *BESIDE, *SHARDS}
    sent = hub.sent()
    assert {file: sent[file] for file in SHARDS} == dict.fromkeys(SHARDS, SIZE)
    asked = [request.path.partition("/resolve/")[2] for request in hub.log if "/resolve/" in request.path]
    assert {path.partition("/")[0] for path in asked} == {COMMIT}
    assert {path.partition("/")[2] for path in asked} == {CONFIG, INDEX, *BESIDE, *SHARDS}
    assert len([request for request in hub.log if request.path.startswith("/api/")]) == 1
    assert (storage(folder.parents[2]) / "refs" / "main").read_text() == COMMIT
    files = [file for file, *_ in answer["reports"]]
    assert list(dict.fromkeys(files)) == [CONFIG, "generation_config.json", "tokenizer.json", BESIDE[2], INDEX, *SHARDS]


def test_progress_is_told_as_bytes_arrive_and_ends_at_the_total(hub: Hub, call: Call) -> None:
    answer = call()
    folder = fetched(answer, model_folder(hub))
    total = sum(path.stat().st_size for path in folder.iterdir())
    done = [count for _, count, _ in answer["reports"]]
    assert {of for *_, of in answer["reports"]} == {total}
    assert done == sorted(done)
    assert done[-1] == total
    assert len(done) > len(list(folder.iterdir())) + 4, "within files as well"


def test_the_second_call_sends_nothing(hub: Hub, call: Call) -> None:
    first = call()
    hub.log.clear()
    again = call()
    assert again["folder"] == first["folder"]
    assert [request.path.partition("?")[0] for request in hub.log] == ["/api/models/some/model"]
    assert (again["said"], again["reports"][0][1]) == ("", again["reports"][0][2])
    assert call(revision=COMMIT)["folder"] == first["folder"]


@pytest.mark.parametrize("ignores", [False, True], ids=["ranges", "no ranges"])
def test_what_broke_off_goes_on_where_it_stopped(hub: Hub, call: Call, tmp_path: Path, ignores: bool) -> None:
    hub.answers.dies[SHARDS[1]] = [200_001]
    message = failed(call(), "RunError", f"some/model: {SHARDS[1]}: fetching stopped at 200 KB of 300 KB", "goes on")
    assert message.endswith("the same command goes on from there")
    assert [path.stat().st_size for path in partials(tmp_path)] == [200_001]
    hub.answers.ignores_ranges = ignores
    hub.log.clear()
    answer = call()
    fetched(answer, model_folder(hub))
    gets = [request for request in hub.log if request.method == "GET" and request.path.endswith(SHARDS[1])]
    assert [request.range for request in gets] == [f"bytes=200001-{SIZE - 1}"]
    assert hub.sent().get(SHARDS[0], 0) == 0
    assert gets[0].sent == (SIZE if ignores else SIZE - 200_001)
    assert answer["reports"][0][1] >= SIZE + 200_001, "what was there counts as done"


def test_a_connection_that_breaks_is_opened_again(hub: Hub, call: Call) -> None:
    hub.answers.dies[SHARDS[0]] = [100_000, 0, 70_000, 0]
    fetched(call(pauses=[0, 0]), model_folder(hub))
    gets = [request for request in hub.log if request.method == "GET" and request.path.endswith(SHARDS[0])]
    starts = [request.range.partition("-")[0] for request in gets if request.range]
    assert starts == ["bytes=0", "bytes=100000", "bytes=100000", "bytes=170000", "bytes=170000"]
    assert sum(request.sent for request in gets) == SIZE


def test_a_server_that_fails_for_a_while_and_one_that_goes_on_failing(hub: Hub, call: Call, tmp_path: Path) -> None:
    vars(hub.answers).update(status=503, failing=SHARDS[1], methods=("GET",))
    failed(call(pauses=[0, 0, 0]), "RunError", SHARDS[1], "stopped at 0 B of 300 KB", "503", "the same command goes on")
    assert len([request for request in hub.log if request.method == "GET" and SHARDS[1] in request.path]) == 3
    hub.answers.status = 200
    fetched(call(), model_folder(hub))


def test_interrupted_it_leaves_what_arrived_and_nothing_else(hub: Hub, call: Call, tmp_path: Path) -> None:
    assert call(interrupt=SIZE + 100_000)["kind"] == "KeyboardInterrupt"
    (partial,) = partials(tmp_path)
    had = partial.stat().st_size
    whole = content(SHARDS[1])
    assert partial.read_bytes() == whole[:had]
    assert partial.name == f"{hashlib.sha256(whole).hexdigest()}.incomplete"
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {".locks", "CACHEDIR.TAG", "models--some--model"}
    assert {path.name for path in storage(tmp_path / "cache").iterdir()} == {"blobs", "snapshots"}
    hub.log.clear()
    fetched(call(), model_folder(hub))
    assert weights_sent(hub) == SIZE - had


def test_what_arrived_damaged_is_found_and_fetched_again(hub: Hub, call: Call, tmp_path: Path) -> None:
    call(interrupt=SIZE + 100_000)
    (partial,) = partials(tmp_path)
    partial.write_bytes(b"\0" * partial.stat().st_size)
    failed(call(), "CheckpointError", f"some/model: {SHARDS[1]}: arrived damaged", "again")
    assert not partials(tmp_path)
    folder = fetched(call(), model_folder(hub))
    (folder / SHARDS[0]).resolve().write_bytes(b"cut")  # in the cache itself
    (folder / SHARDS[1]).unlink()
    (folder / SHARDS[1]).write_bytes(b"cut")  # a copy of the cache, made without links
    hub.log.clear()
    fetched(call(), model_folder(hub))
    assert weights_sent(hub) == SIZE


def test_a_part_that_is_longer_than_the_file_is_begun_again(hub: Hub, call: Call, tmp_path: Path) -> None:
    call(interrupt=SIZE + 100_000)
    (partial,) = partials(tmp_path)
    partial.write_bytes(b"\0" * (SIZE + 1))
    answer = call()
    fetched(answer, model_folder(hub))
    done = [count for _, count, _ in answer["reports"]]
    assert done == sorted(done), "what is told never falls"


def test_all_files_are_of_one_commit(hub: Hub, call: Call, tmp_path: Path) -> None:
    """A push after the first file: main means another commit from then on."""
    key, old, new = ("some/model", "main"), "a" * 40, "b" * 40
    first, second = model_folder(hub), repository(tmp_path / "new", CONFIG, *BESIDE, version=1)
    hub.answers.commits[key] = old

    def push() -> None:
        hub.answers.repos |= {key: second, ("some/model", old): first}
        hub.answers.commits[key] = new

    hub.answers.after[CONFIG] = push
    assert fetched(call(), first).name == old
    hub.log.clear()
    assert fetched(call(), second).name == new
    assert not [request for request in hub.log if f"/{old}/" in request.path]
    assert fetched(call(revision=old), first).name == old


def test_what_another_commit_has_too_is_not_fetched_again(hub: Hub, call: Call, tmp_path: Path) -> None:
    call()
    second = repository(tmp_path / "new", CONFIG, *BESIDE)
    (second / CONFIG).write_text("{}")
    hub.answers.repos["some/model", "v2"] = second
    hub.answers.commits["some/model", "v2"] = "b" * 40
    hub.log.clear()
    assert fetched(call(revision="v2"), second).name == "b" * 40
    assert weights_sent(hub) == 0


def test_no_room(hub: Hub, call: Call, tmp_path: Path) -> None:
    message = failed(call(free=500_000), "RunError", "HF_HOME: some/model needs 60", "500 KB are free", "set HF_HOME")
    assert str(tmp_path / "cache") in message
    assert weights_sent(hub) == 0
    hub.answers.dies[SHARDS[1]] = [100_000]
    call()
    fetched(call(free=200_000), model_folder(hub))


def offline(hub: Hub, cache: Path, *requests: dict[str, Any], **more: str) -> list[dict[str, Any]]:
    """What a process of its own says to these calls."""
    usual: dict[str, Any]
    usual = {"free": None, "interrupt": None, "only_list": False, "pauses": [], "copies": False, "xet": False}
    calls = [usual | {"cache": str(cache), "repo": "some/model", "revision": None} | one for one in requests]
    text = "".join(json.dumps(one) + "\n" for one in calls)
    env = environment(hub, cache, **more)
    run = [sys.executable, "-c", WORKER]
    done = subprocess.run(run, input=text, capture_output=True, text=True, env=env, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no server"])
def test_without_the_hub_a_whole_snapshot_does_and_part_of_one_never(
    hub: Hub, call: Call, tmp_path: Path, how: str
) -> None:
    folder, cache = call()["folder"], tmp_path / "cache"
    hub.answers.dies[SHARDS[1]] = [1]
    call(cache=str(tmp_path / "part"), revision=COMMIT)
    hub.log.clear()
    gone = Hub(Answers())
    gone.close()
    more = {"HF_HUB_OFFLINE": "1"} if how == "HF_HUB_OFFLINE" else {}
    whole, pinned, none, part, absent = offline(
        hub if more else gone, cache, {}, {"revision": COMMIT}, {"revision": "v2"},
        {"cache": str(tmp_path / "part"), "revision": COMMIT}, {"cache": str(tmp_path / "none")}, **more,
    )  # fmt: skip
    assert whole.get("folder") == pinned.get("folder") == folder, whole
    why = "HF_HUB_OFFLINE is set" if more else "refused"
    failed(none, "RunError", "some/model: nothing of revision v2", "the hub cannot be reached", why)
    failed(part, "RunError", f"some/model: {SHARDS[1]} is not in the local cache", "the hub cannot be reached", why)
    failed(absent, "RunError", "nothing of revision main", "the hub cannot be reached", why)
    assert not hub.log


def test_a_hub_that_fails_leaves_a_whole_snapshot_usable(hub: Hub, call: Call, tmp_path: Path) -> None:
    folder = call()["folder"]
    hub.answers.status = 500
    assert call()["folder"] == folder
    (Path(folder) / SHARDS[0]).unlink()
    failed(call(), "BigrunError", "some/model: the hub answered", "500")


FAILURES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "no such model": ({}, {"repo": "some/nothing"}, "CallError", "some/nothing: no such model"),
    "no such revision": ({}, {"revision": "v9"}, "CallError", "some/model: no such revision"),
    "private": ({"status": 401, "code": "RepoNotFound"}, {}, "CallError", "HF_TOKEN"),
    "gated": ({"status": 403, "code": "GatedRepo", "failing": ".json"}, {}, "CallError", "some/model: gated"),
    "weights gated": ({"status": 403, "code": "GatedRepo", "failing": SHARDS[0]}, {}, "CallError", "some/model: gated"),
    "fails": ({"status": 502}, {}, "BigrunError", "502"),
    "no list": ({"listing": [1]}, {}, "BigrunError", "list of its files"),
    "an empty list": ({"listing": {"id": "some/model", "sha": "a" * 40}}, {}, "CheckpointError", "no weights"),
    "no commit": ({"listing": {"id": "some/model", "sha": "../x", "siblings": []}}, {}, "BigrunError", "no commit"),
    "a list that is none": ({"listing": {"id": "x", "siblings": [{}]}}, {}, "BigrunError", "list of its files"),
}


@pytest.mark.parametrize("case", FAILURES.values(), ids=FAILURES.keys())
def test_a_hub_that_says_no(
    hub: Hub, call: Call, case: tuple[dict[str, Any], dict[str, Any], str, str], tmp_path: Path
) -> None:
    faults, arguments, kind, words = case
    vars(hub.answers).update(faults)
    failed(call(**arguments), kind, words)
    assert not partials(tmp_path)


def test_what_is_needed_of_repositories_of_each_kind(hub: Hub, call: Call, tmp_path: Path) -> None:
    kinds: dict[str, tuple[tuple[str, ...], Any, str]] = {
        "one": ((CONFIG, "model.safetensors", "model-00001-of-00002.safetensors"), None, INDEX),
        "torch": ((CONFIG, "tokenizer.model", "pytorch_model.bin", "training_args.bin"), None, INDEX),
        "parts": ((CONFIG, "pytorch_model.bin"), ("p-1.bin", "p-2.bin"), download.TORCH_INDEX),
    }
    for name, (files, shards, index) in kinds.items():
        hub.answers.repos[f"kind/{name}", "main"] = repository(tmp_path / name, *files, shards=shards, index=index)
    answers = {name: call(f"kind/{name}", only_list=True) for name in kinds}
    assert weights_sent(hub) == 0
    names = {kind: [file for file, _ in answer["files"]] for kind, answer in answers.items()}
    assert names == {
        "one": [CONFIG, "model.safetensors"],
        "torch": [CONFIG, "tokenizer.model", "pytorch_model.bin"],
        "parts": [CONFIG, download.TORCH_INDEX, "p-1.bin", "p-2.bin"],
    }
    assert [answer["weights"] for answer in answers.values()] == ["safetensors", "torch", "torch"]
    assert answers["one"]["files"][1] == ["model.safetensors", SIZE]
    assert {path.name for path in fetched(call("kind/torch"), tmp_path / "torch").iterdir()} == set(names["torch"])


HOSTILE: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "only GGUF": (None, ("x-Q4_K.gguf", "x-Q8_0.gguf"), "only GGUF files: download x-Q8_0.gguf and name the file"),
    "only flax": (None, (CONFIG, "flax_model.msgpack"), "there is flax_model.msgpack"),
    "nothing": (None, (CONFIG,), "no weights"),
    "no configuration": (SHARDS, (), "config.json: missing"),
    "outside": (("../x.safetensors",), (CONFIG,), f"{INDEX}: names '../x.safetensors'"),
    "another kind": (("original/all.pth",), (CONFIG,), "names 'original/all.pth', which is no .safetensors"),
    "numbers": ((1,), (CONFIG,), "weight_map"),
    "too many": (tuple(map(str, range(2001))), (CONFIG,), "2001"),
}


@pytest.mark.parametrize("index", [INDEX, download.TORCH_INDEX])
@pytest.mark.parametrize("name", HOSTILE)
def test_repositories_that_cannot_run(hub: Hub, call: Call, tmp_path: Path, name: str, index: str) -> None:
    shards, files, words = HOSTILE[name]
    if index != INDEX:
        shards = [file.replace("safetensors", "bin") if isinstance(file, str) else file for file in shards or ()]
        words = words.replace("safetensors", "bin").replace("model.bin.index", "pytorch_model.bin.index")
    folder = repository(tmp_path / "bad", *files, shards=() if name == "too many" else shards, index=index)
    if name == "too many":
        (folder / index).write_text(json.dumps({"weight_map": {file: file for file in shards}}))
    hub.answers.repos["some/bad", "main"] = folder
    failed(call("some/bad"), "CheckpointError", "some/bad: ", words)
    assert weights_sent(hub) == 0
    assert not (tmp_path / "cache").exists()


def test_a_shard_that_the_list_lacks_and_an_index_that_is_too_large(hub: Hub, call: Call) -> None:
    (model_folder(hub) / SHARDS[1]).unlink()
    failed(call(), "CheckpointError", f"some/model: {SHARDS[1]}: missing, though {INDEX} names it")
    os.truncate(model_folder(hub) / INDEX, download.LARGEST_INDEX + 1)
    failed(call(), "CheckpointError", INDEX, "larger than")


def test_large_files_are_fetched_where_they_redirect_to(hub: Hub, call: Call) -> None:
    cdn = Hub(Answers(hub.answers.repos))
    hub.answers.cdn = cdn.url
    try:
        fetched(call(), model_folder(hub))
    finally:
        cdn.close()
    assert weights_sent(hub) == 0
    assert weights_sent(cdn) == 2 * SIZE


def test_a_file_system_without_links(hub: Hub, call: Call, tmp_path: Path) -> None:
    folder = fetched(call(copies=True), model_folder(hub))
    assert not [path for path in folder.iterdir() if path.is_symlink()]
    assert not list((storage(tmp_path / "cache") / "blobs").iterdir()), "nothing is there twice"
    hub.log.clear()
    fetched(call(copies=True), model_folder(hub))
    assert weights_sent(hub) == 0


def test_where_xet_s_servers_do_not_answer_the_hub_gives_the_file(hub: Hub, call: Call) -> None:
    pytest.importorskip("hf_xet")
    hub.answers.xet = True
    fetched(call(xet=True), model_folder(hub))
    assert [request for request in hub.log if "xet-read-token" in request.path]
    assert weights_sent(hub) == 2 * SIZE


def test_what_stands_in_for_a_progress_bar() -> None:
    from bigrun.checkpoint.hub.hub import silent_bar

    seen: list[int] = []
    bar = silent_bar(seen.append)
    with bar(desc="x", unit="B", total=10, initial=2) as shown:
        shown.update(3)
        shown.set_postfix_str("1 MB/s", refresh=False)
        shown.update_transfer(7)
        shown.update(-5)
        shown.refresh()
    shown.close()
    assert seen == [5, 0]


def test_xet_reports_its_bytes_to_it(capfd: pytest.CaptureFixture[str]) -> None:
    reporting = pytest.importorskip("huggingface_hub.utils._xet_progress_reporting")
    from bigrun.checkpoint.hub.hub import silent_bar

    seen: list[int] = []
    how = {"reconstruction_desc": "x", "total": 10, "log_level": 30, "tqdm_class": silent_bar(seen.append)}
    with reporting.XetDownloadProgressReporter(**how) as reporter:
        for written, sent in ((0, 3), (4, 6), (10, 6)):
            rates = {"total_bytes_completion_rate": None, "total_transfer_bytes_completion_rate": 1.0}
            counts = {"total_bytes_completed": written, "total_transfer_bytes_completed": sent, "total_bytes": 10}
            reporter.update_progress(SimpleNamespace(**counts, **rates))
    assert seen == [4, 10]
    assert capfd.readouterr() == ("", "")


def test_two_at_once_fetch_it_once(hub: Hub, tmp_path: Path) -> None:
    env = environment(hub, tmp_path / "home")
    program = (
        "from bigrun.checkpoint.hub.download import fetch; from bigrun.model.resolve import Model\n"
        "print(fetch(Model('some/model', repo='some/model'), None))"
    )
    run = [sys.executable, "-c", program]
    both = [subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) for _ in "12"]
    (first, said), (second, _) = (child.communicate(timeout=60) for child in both)
    assert first == second != "", said
    fetched({"folder": first.strip(), "said": ""}, model_folder(hub))
    assert weights_sent(hub) == len(SHARDS) * SIZE


LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2,
    "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip


def test_a_plan_fetches_no_weights(hub: Hub, tmp_path: Path) -> None:
    """Of a repository in PyTorch's format not a byte; tests/test_hub.py has the headers of safetensors."""
    folder = repository(tmp_path / "torch", download.TORCH_SINGLE, shards=None)
    (folder / CONFIG).write_text(json.dumps(LLAMA))
    hub.answers.repos["some/torch", "main"] = folder
    plan = ("plan", "--model", "some/torch", "--gpus", "none", "--cpu", "8GB")
    done = run_process(*plan, env=environment(hub, tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert not [request for request in hub.log if request.path.endswith(".bin")]
