"""A plan says whether this version can run it, in every form; a run refuses for the same reason, and for no other."""

import json
from pathlib import Path
from typing import Any

import pytest

from bigrun import plan
from bigrun.errors import CallError
from bigrun.loading.open import model_spec
from bigrun.model.resolve import resolve
from bigrun.planning.picture import plan_svg
from bigrun.planning.plan import Plan, plan_from_json
from bigrun.planning.report import plan_text
from bigrun.planning.words import rate
from bigrun.session.preflight import check_runnable, why_not_runnable
from support.commands import plan_command
from support.plans import plan_of

README = {"model": "llama-3.1-70b", "gpus": "2xRTX3090", "cpu": "64GB"}
# what is planned → words of why it cannot be run
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a family": ({"model": "gemma-2-9b", "gpus": "24GB", "cpu": "8GB"}, "family gemma2"),
    "a mixture": ({"model": "mixtral-8x7b", "gpus": "3x24GB", "cpu": "8GB"}, "family mixtral"),
    "the disk": ({"model": "opt-30b", "gpus": "24GB", "cpu": "1GB", "disk": "100GB"}, "parts on the disk"),
    "a card by AMD": ({"model": "llama-3.1-8b", "gpus": "1xRX7900XTX", "cpu": "8GB"}, "cuda:0 is an RX7900XTX"),
    "streaming": ({**README, "streams": True}, "streaming the host's parts through a GPU"),
}


def refusal(made: Plan, model: str) -> str:
    """What a run says of a plan, whatever GPUs are here."""
    try:
        check_runnable(made, model_spec(resolve(model)))
    except CallError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("options", "why"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_run_is_said_by_the_plan_its_json_its_table_its_picture_and_a_run(
    options: dict[str, Any], why: str
) -> None:
    made = plan_of(**options)
    why = why.replace("--context", "context")  # Python's callers read parameters
    said = refusal(made, options["model"])
    assert why in said
    if not options.get("streams"):  # which no plan of this version does
        assert isinstance(made.runs, str)
        assert said == f"{made.model}: {made.runs}".replace("--", "")
        assert plan_from_json(made.to_json()).runs == made.runs
        title, line = plan_text(made).splitlines()[:2]
        assert " fits, cannot run yet " in title
        assert line.startswith("cannot run yet: ")
        assert "can be planned but not run yet" not in line
        assert ">fits, cannot run yet<" in plan_svg(made)
        assert ">cannot run yet: " in plan_svg(made)


@pytest.mark.parametrize(
    "options", [README, {**README, "batch": 3, "kv": "int8"}, {**README, "virtual": True}], ids=str
)
def test_no_plan_streams_the_hosts_parts_and_what_streaming_would_give_is_a_line(options: dict[str, Any]) -> None:
    made = plan(**options)
    assert made.fits
    assert made.runs is True
    assert {p.stored_on for p in made.placements} > {"cpu"}
    assert all({p.prefill_on, p.decode_on} == {p.stored_on} for p in made.placements)
    assert why_not_runnable(made, model_spec(resolve(options["model"]))) == ""
    lines = [line for line in plan_text(made, 200).splitlines() if line.startswith("if the host's parts were streamed")]
    if options.get("virtual"):
        assert (made.if_streamed, lines) == (None, [])
        return
    streamed = plan_of(**options, streams=True).predicted
    assert made.if_streamed is not None
    assert streamed is not None
    assert made.predicted is not None
    figures = (
        made.if_streamed.prefill_tokens_per_s,
        made.if_streamed.decode_tokens_per_s,
        made.if_streamed.request_seconds,
    )
    assert figures == (streamed.prefill_tokens_per_s, streamed.decode_tokens_per_s, streamed.request_seconds)
    assert streamed.request_seconds < made.predicted.request_seconds
    assert len(lines) == 1
    assert "through cuda:0, which runs do not do yet" in lines[0]
    assert f"{rate(streamed.prefill_tokens_per_s)} tokens/s of prompt" in lines[0]
    assert plan_from_json(made.to_json()) == made


@pytest.mark.parametrize("gpus", ["8x24GB", "none"])
def test_nothing_is_said_of_streaming_where_nothing_would_be_streamed(gpus: str) -> None:
    made = plan("llama-3.1-70b", gpus=gpus, cpu="128GB")
    assert (made.fits, made.runs, made.if_streamed) == (True, True, None)


def test_a_plan_that_does_not_fit_cannot_be_run_and_its_badge_is_of_that() -> None:
    made = plan("llama-3.1-70b", gpus="24GB", cpu="8GB")
    assert (made.fits, made.runs) == (False, "it does not fit")
    assert "cannot run yet" not in plan_text(made) + plan_svg(made)
    assert "gemma2" in str(plan("gemma-2-27b", gpus="2GB", cpu="1GB").runs)


def test_the_json_of_the_readmes_rig_is_not_refused_for_streaming(tmp_path: Path) -> None:
    result = plan_command("--model", "llama-3.1-70b", "--gpus", "2xRTX3090", "--cpu", "64GB", "--json")
    (tmp_path / "p").write_text(result.stdout)
    assert json.loads(result.stdout)["runs"] is True
    assert "stream" not in refusal(Plan.load(tmp_path / "p"), "llama-3.1-70b")
    printed = json.loads(plan_command("--model", "gemma-2-9b", "--gpus", "24GB", "--cpu", "8GB", "--json").stdout)
    assert "gemma2" in printed["runs"]
