"""The picture of a plan, read back: what is drawn is what the plan says, to a tenth of a point."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bigrun import plan
from bigrun.planning.picture import COLOURS, COLUMN, HEIGHT, NAMES, plan_svg
from bigrun.planning.plan import Plan
from bigrun.planning.plan_data import DevicePlan
from bigrun.planning.words import describe_parts, duration, rate
from bigrun.sizes import format_size
from support.commands import plan_command
from support.plans import plan_of

SVG = "{http://www.w3.org/2000/svg}"
KIND_OF = {colour: kind for kind, colour in COLOURS.items()}
LETTER = 0.62  # of the size of a font: a letter of an ordinary sans serif, with something to spare for digits

PLANS: dict[str, dict[str, Any]] = {
    "eight cards and a disk": {"model": "bloom-176b", "gpus": "8x24GB", "cpu": "16GB", "disk": "500GB"},
    "a mixture": {"model": "mixtral-8x7b", "gpus": "1x24GB,1x12GB", "cpu": "64GB"},
    "streamed": {
        "streams": True,
        "model": "llama-3.1-70b",
        "gpus": "2xRTX3090",
        "cpu": "64GB",
        "batch": 3,
        "kv": "int8",
    },
    "virtual": {"model": "llama-3.2-3b", "gpus": "11x600MB", "cpu": "8GB", "virtual": True},
    "the host alone": {"model": "smollm2-135m", "gpus": "none", "cpu": "1GB"},
    "nothing on the host": {"model": "bloom-560m", "gpus": "24GB", "cpu": "0"},
    "from the disk": {"model": "llama-3.1-8b", "gpus": "none", "cpu": "4GB", "disk": "20GB"},
    "too small": {"model": "llama-3.1-70b", "gpus": "1x24GB", "cpu": "12GB"},
    "a mixture too big": {"model": "deepseek-v2-lite", "gpus": "1x4GB", "cpu": "2GB"},
    "forty devices": {"model": "llama-3.1-405b", "gpus": "30x12GB,8x16GB", "cpu": "64GB", "disk": "1TB"},
}


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    return {name: plan_of(**rig) for name, rig in PLANS.items()}


@pytest.fixture(params=PLANS)
def made(request: pytest.FixtureRequest, plans: dict[str, Plan]) -> Plan:
    return plans[request.param]


def drawn(made: Plan) -> ElementTree.Element:
    return ElementTree.fromstring(plan_svg(made))


def texts(picture: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in picture.iter(f"{SVG}text")]


def number(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name, "nan"))


def boxes(picture: ElementTree.Element) -> list[tuple[float, float, float, float, str]]:
    """(x, y, width, height, fill) of every rectangle but the paper."""
    rectangles = [r for r in picture.iter(f"{SVG}rect") if r.get("width") != "100%"]
    return [(*(number(r, name) for name in ("x", "y", "width", "height")), r.get("fill", "")) for r in rectangles]  # type: ignore


def columns(made: Plan) -> dict[str, tuple[float, float, list[tuple[str, float, float]]]]:
    """Device name → (left edge, top, [(kind, y, height)] from the bottom up), as they are drawn."""
    picture = drawn(made)
    whole = [(x, y) for x, y, w, h, fill in boxes(picture) if (w, h) == (COLUMN, HEIGHT) and fill not in KIND_OF]
    assert len(whole) == len(made.devices)
    result = {}
    for device, (left, top) in zip(made.devices, whole, strict=True):
        pieces = [
            (KIND_OF[fill], y, h)
            for x, y, w, h, fill in boxes(picture)
            if fill in KIND_OF and (x, w) == (left, COLUMN) and top - 1 <= y <= top + HEIGHT
        ]
        result[device.name] = left, top, pieces
    return result


def bytes_by_kind(made: Plan, device: DevicePlan) -> dict[str, int]:
    """What a device holds, by the kinds of the legend, from the plan alone."""
    totals = dict.fromkeys(COLOURS, 0)
    for placement in made.placements:
        if placement.stored_on == device.name:
            blocks = "experts" if placement.part.endswith(".experts") else "blocks"
            totals[blocks if placement.part.startswith("blocks.") else "ends"] += placement.weights_bytes
    totals |= {"kv_cache": device.kv_cache_bytes, "workspace": device.workspace_bytes, "reserve": device.reserve_bytes}
    totals["staging"] = device.staging_bytes + device.pinned_bytes
    assert sum(totals.values()) == device.used_bytes
    return {kind: nbytes for kind, nbytes in totals.items() if nbytes}


def test_every_device_has_a_column_with_its_name_and_what_it_uses(made: Plan) -> None:
    words = texts(drawn(made))
    for device in made.devices:
        assert (f"{device.name} (virtual)" if device.virtual else device.name) in words
        assert f"{format_size(device.used_bytes)} of {format_size(device.budget_bytes)}" in words
    assert len(columns(made)) == len(made.devices)


def test_pieces_are_as_high_as_their_bytes_and_stand_on_one_another_in_the_column(made: Plan) -> None:
    places = columns(made)
    for device in made.devices:
        _, top, pieces = places[device.name]
        expected = bytes_by_kind(made, device)
        assert [kind for kind, _, _ in pieces] == [kind for kind in COLOURS if kind in expected]
        bottom = top + HEIGHT
        for kind, y, high in pieces:
            assert high == pytest.approx(HEIGHT * expected[kind] / device.budget_bytes, abs=0.02)
            assert y + high == pytest.approx(bottom, abs=0.03)
            bottom = y
        assert bottom >= top - 0.03
        assert sum(high for _, _, high in pieces) == pytest.approx(
            HEIGHT * device.used_bytes / max(1, device.budget_bytes), abs=0.1
        )


def test_nothing_is_drawn_outside_the_view_nor_a_label_outside_its_column(made: Plan) -> None:
    picture = drawn(made)
    left, top, width, height = map(float, picture.get("viewBox", "").split())
    assert (left, top) == (0, 0)
    assert (picture.get("width"), picture.get("height")) == (f"{width:.0f}", f"{height:.0f}")
    for x, y, w, h, _ in boxes(picture):
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
        assert h >= 0
    edges = [x for x, _, _ in columns(made).values()]
    inner = [(x, w) for x, _, w, _, fill in boxes(picture) if fill in KIND_OF and w not in (12, COLUMN)]
    assert all(any(edge <= x and x + w <= edge + COLUMN for edge in edges) for x, w in inner)
    for element in picture.iter(f"{SVG}text"):
        wide = LETTER * number(element, "font-size") * len(element.text or "")
        start = number(element, "x") - (wide / 2 if element.get("text-anchor") == "middle" else 0)
        assert start >= -0.1, element.text
        assert start + wide <= width, element.text
        assert number(element, "font-size") <= number(element, "y") <= height


def test_devices_beyond_ten_start_another_row_and_no_column_covers_another(made: Plan) -> None:
    places = [(x, y) for x, y, _ in columns(made).values()]
    rows = sorted({y for _, y in places})
    assert len(rows) == -(-len(made.devices) // 10)
    for row in rows:
        here = sorted(x for x, y in places if y == row)
        assert len(here) <= 10
        assert all(after - before > COLUMN for before, after in pairwise(here))
    assert all(after - before > HEIGHT for before, after in pairwise(rows))


def test_the_legend_names_the_kinds_that_are_drawn_and_no_other(made: Plan) -> None:
    picture = drawn(made)
    samples = [KIND_OF[fill] for _, _, w, h, fill in boxes(picture) if (w, h) == (12, 12)]
    used = {kind for device in made.devices for kind in bytes_by_kind(made, device)}
    assert samples == [kind for kind in COLOURS if kind in used]
    last = max(y for _, y, _ in columns(made).values()) + HEIGHT
    foot = [element.text for element in picture.iter(f"{SVG}text") if number(element, "y") > last]
    for kind in used:
        assert NAMES[kind] in foot


def test_the_verdict_and_the_predicted_numbers_are_those_of_the_plan(made: Plan) -> None:
    words = texts(drawn(made))
    assert made.model in words
    verdict = "fits, cannot run yet" if isinstance(made.runs, str) else "fits"
    badges = [word for word in words if word in ("fits", "does not fit", "fits, cannot run yet")]
    assert badges == [verdict if made.fits else "does not fit"]
    assert any(f"{made.context_tokens:,} tokens of context" in text for text in words)
    if made.predicted is None:
        (missing,) = (text for text in words if text.startswith("no place for "))
        assert "tokens/s decoding" not in words
        assert missing.rstrip("…") in f"no place for {describe_parts(made.unplaced)}"
        return
    for value, label in (
        (rate(made.predicted.decode_tokens_per_s), "tokens/s decoding"),
        (rate(made.predicted.prefill_tokens_per_s), "tokens/s of prompt"),
        (
            duration(made.predicted.request_seconds),
            f"for {made.batch} × (1,536 + 512) tokens" if made.batch > 1 else "for 1,536 + 512 tokens",
        ),
        (duration(made.predicted.load_seconds), "to load"),
    ):
        assert words[words.index(label) - 1] == value


def test_the_bytes_of_the_title_are_those_of_the_whole_model_or_are_left_out(plans: dict[str, Plan]) -> None:
    assert any("46.7 B parameters in int8 = 46.8 GB" in text for text in texts(drawn(plans["a mixture"])))
    (title,) = (text for text in texts(drawn(plans["too small"])) if "parameters" in text)
    assert "GB" not in title


def test_a_picture_says_whether_it_rests_on_measurements(plans: dict[str, Plan]) -> None:
    made = plans["a mixture"]
    assert made.predicted is not None
    found = {"measured": ("cpu: 10 GB/s",), "given": ("speeds as rig.yaml gives them",), "assumptions": ("a guess",)}
    for kinds, said in (
        (("assumptions",), "predicted from rates published or assumed"),
        (("measured",), "predicted from rates measured on this host"),
        (("measured", "assumptions"), "predicted from rates measured on this host and published or assumed"),
        (("given", "measured", "assumptions"), "rates given, measured on this host and published or assumed"),
    ):
        basis: dict[str, Any] = {kind: found[kind] if kind in kinds else () for kind in found}
        drawing = drawn(replace(made, predicted=replace(made.predicted, **basis, learned=())))
        assert any(text.endswith(said) for text in texts(drawing)), said


def test_blocks_are_told_apart_by_lines_where_there_is_room(plans: dict[str, Plan]) -> None:
    made = plans["eight cards and a disk"]
    lines = [x for x, _, w, h, _ in boxes(drawn(made)) if (w, h) == (COLUMN, 0.7)]
    assert lines.count(columns(made)["cuda:0"][0]) == 8, "nine blocks have eight lines between them"
    assert "blocks 0-8" in texts(drawn(made))


def test_a_label_too_long_for_its_column_is_cut_and_its_ground_ends_with_the_column(plans: dict[str, Plan]) -> None:
    made = plans["the host alone"]
    odd = tuple(p for p in made.placements if not p.part.startswith("blocks.") or int(p.part[7:]) % 2)
    picture = drawn(replace(made, placements=odd, devices=(replace(made.devices[0], budget_bytes=3 * 10**8),)))
    assert "blocks 1, 3, 5, 7,…" in [re.sub(r"\s+…", "…", text) for text in texts(picture)]
    left = next(x for x, _, w, h, fill in boxes(picture) if (w, h) == (COLUMN, HEIGHT) and fill not in KIND_OF)
    inner = [(x, w) for x, _, w, h, fill in boxes(picture) if fill in KIND_OF and h == 12 and w != 12]
    assert inner
    assert all(left <= x <= x + w <= left + COLUMN for x, w in inner)


@pytest.mark.parametrize("count", [1, 9, 10, 11, 20, 39])
def test_any_number_of_devices_is_drawn_inside_the_view(count: int, plans: dict[str, Plan]) -> None:
    made = plans["forty devices"]
    some = replace(made, devices=made.devices[:count])
    test_every_device_has_a_column_with_its_name_and_what_it_uses(some)
    test_nothing_is_drawn_outside_the_view_nor_a_label_outside_its_column(some)
    test_devices_beyond_ten_start_another_row_and_no_column_covers_another(some)


NAMES_OF_MODELS = {
    "markup": "<script>alert('x')</script>",
    "signs": "a & b < c > d \" e ' f ]]> &amp;",
    "beyond ascii": "模型-é-🙂",
    "empty": "",
}


@pytest.mark.parametrize("name", NAMES_OF_MODELS.values(), ids=NAMES_OF_MODELS)
def test_a_name_is_shown_as_it_is_whatever_signs_it_has(name: str, plans: dict[str, Plan]) -> None:
    picture = drawn(replace(plans["the host alone"], model=name))
    assert name in texts(picture)
    assert picture.findtext(f"{SVG}title") == f"{name}: where it goes"
    assert {element.tag.removeprefix(SVG) for element in picture.iter()} == {"svg", "title", "rect", "text"}


@pytest.mark.parametrize(
    "name",
    ["\x00\x01\x1f\x7f", "two\nlines\r\tand a tab", "a\ud800b", "a\ufffeb\uffff", "\x1b[31mred", "\x85\u2028\u202e"],
    ids=["control", "newlines", "surrogate", "no characters", "escape", "other breaks"],
)
def test_characters_that_a_file_may_not_hold_are_escaped(name: str, plans: dict[str, Plan], tmp_path: Path) -> None:
    text = plan_svg(replace(plans["the host alone"], model=name))
    (tmp_path / "plan.svg").write_text(text, encoding="utf-8")
    words = texts(ElementTree.parse(tmp_path / "plan.svg").getroot())
    assert all(word.isprintable() for word in words)
    assert "\\" in words[0]


@pytest.mark.parametrize("fits", ["a mixture", "too small"])
@pytest.mark.parametrize("name", ["a-model-of-a-long-name-" * 12, "\x01" * 300], ids=["long", "long when escaped"])
def test_a_long_name_ends_before_the_verdict(name: str, fits: str, plans: dict[str, Plan]) -> None:
    picture = drawn(replace(plans[fits], model=name))
    shown = next(element for element in picture.iter(f"{SVG}text") if element.get("font-size") == "25")
    badge = next(x for x, y, _, h, _ in boxes(picture) if (y, h) == (24, 28))
    assert (shown.text or "").endswith("…")
    assert number(shown, "x") + LETTER * 25 * len(shown.text or "") < badge
    assert (shown.text or "")[:10] == name[:10].replace("\x01", "\\x01")[:10]


def test_the_same_plan_gives_the_same_picture(made: Plan) -> None:
    assert plan_svg(made) == plan_svg(replace(made))


SMALL = ("--model", "llama-3.2-3b", "--gpus", "1x4GB", "--cpu", "8GB")


def test_the_command_writes_the_picture_beside_its_usual_answer(tmp_path: Path) -> None:
    file = tmp_path / "plan.svg"
    result = plan_command(*SMALL, "--svg", str(file), "--json")
    assert result.exit_code == 0
    assert result.stdout == plan_command(*SMALL, "--json").stdout
    assert file.read_text(encoding="utf-8") == plan_svg(plan("llama-3.2-3b", gpus="1x4GB", cpu="8GB"))
    assert json.loads(result.stdout)["fits"] is True


def test_a_plan_that_does_not_fit_is_drawn_too_and_the_status_is_3(tmp_path: Path) -> None:
    file = tmp_path / "plan.svg"
    result = plan_command("--model", "llama-3.1-70b", "--gpus", "24GB", "--cpu", "8GB", "--svg", str(file))
    assert result.exit_code == 3
    assert "does not fit" in texts(ElementTree.parse(file).getroot())


def test_the_picture_of_a_question_is_that_of_its_answer(tmp_path: Path) -> None:
    file = tmp_path / "plan.svg"
    assert plan_command(*SMALL, "--what-if", "+2x4GB", "--svg", str(file)).exit_code == 0
    assert {"cuda:0", "cuda:1", "cuda:2", "cpu"} <= set(texts(ElementTree.parse(file).getroot()))


@pytest.mark.parametrize("where", ["no/such/folder/plan.svg", ".", "file/plan.svg", "a" * 300], ids=lambda w: w[:24])
def test_a_path_that_cannot_be_written_ends_with_2_and_one_line(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = plan_command(*SMALL, "--svg", str(tmp_path / where))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"bigrun: --svg .*: cannot be written: .*\n", result.stderr)
