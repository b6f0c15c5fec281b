"""The answers to questions of a plan (--solve, --what-if, --target), in a line or three."""

from typing import Any

from rich.text import Text

from bigrun.planning.plan_data import PlanData
from bigrun.planning.words import describe_parts, duration, rate, several

SAME = 0.01  # of a request's time: what nobody notices


def answer_lines(plan: PlanData) -> list[Text]:
    """The plan's answer, and an empty line."""
    answer = plan.answer or {}
    if "before" in answer:
        return [*_before_and_after(answer), Text()]
    if "target_tokens_per_s" in answer:
        how = "today's rig reaches it" if not answer["option"] else f"{answer['change']} ({answer['option']})"
        return [Text.assemble((f"{answer['target_tokens_per_s']:g} tokens/s: ", "bold"), how), Text()]
    if "gpus" in answer:
        return [Text(gpus_sentence(plan)), Text()]
    if "batch" in answer:
        return [Text(f"{several(answer['batch'], 'sequence')} at most"), Text()]
    return [Text(f"{several(answer['context_tokens'], 'token')} of context at most"), Text()]


def _before_and_after(answer: dict[str, Any]) -> list[Text]:
    lines = [Text.assemble((f"{name:6} ", "bold"), _facts(answer[name])) for name in ("before", "after")]
    return [*lines, Text.assemble(("so     ", "bold"), change_sentence(answer))]


def _facts(facts: dict[str, Any]) -> str:
    if not facts["fits"]:
        return "does not fit"
    decode, prefill = rate(facts["decode_tokens_per_s"]), rate(facts["prefill_tokens_per_s"])
    what = f"{decode} tokens/s decoding, {prefill} of prompt, {duration(facts['request_seconds'])} a request, "
    return what + f"{facts['blocks_on_gpus']} of {facts['blocks']} blocks on GPUs"


def change_sentence(answer: dict[str, Any]) -> str:
    """What a change does to a request."""
    change, before, after = answer["change"], answer["before"], answer["after"]
    if not before["fits"] or not after["fits"]:
        if before["fits"] == after["fits"]:
            return f"{change} is not enough: it still does not fit"
        return f"{change} makes it fit" if after["fits"] else f"with {change} it does not fit any more"
    ratio = before["request_seconds"] / after["request_seconds"]
    if abs(ratio - 1) <= SAME:
        return f"{change} changes nothing"
    if ratio > 1:
        return f"{change} makes a request {_times(ratio)} times as fast"
    return f"{change} makes a request {_times(1 / ratio)} times as slow"


def _times(ratio: float) -> str:
    """Three figures, and never 1 for what is more."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"


def gpus_sentence(plan: PlanData) -> str:
    """How many cards hold everything, how many will do beside the host, and what the quickest plan does with the first."""
    answer = plan.answer or {}
    count, least = answer["gpus"], answer["gpus_beside_the_host"]
    text = f"{count} of these {'has' if count == 1 else 'have'} room for everything that is computed"
    if least == 0:
        text += "; none is needed if the host computes all"
    elif least < count:
        text += f"; {least} {'is' if least == 1 else 'are'} enough if the host computes the rest"
    else:
        text += ", and fewer are not enough, even if the host computes the rest" if count > 1 else ""
    beside = tuple(p.part for p in plan.placements if p.decode_on == "cpu" and p.part != "embed")
    if beside:
        text += f". The quickest plan of {count} leaves {describe_parts(beside)} to the host"
    return text
