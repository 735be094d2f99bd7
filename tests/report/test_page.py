"""The report of real runs of a made-up set: its numbers are those of evaluate, and all of it can be read."""

import json
import re
import shutil
from itertools import pairwise

import pytest

from mpamatch.cli import main
from mpamatch.engine.evaluation import evaluate_run
from mpamatch.engine.loop import train
from mpamatch.files import read_json, write_json
from mpamatch.report.charts import STRONGEST, Axis, range_of
from mpamatch.report.page import Report, RunContent, _shipped, write_report
from mpamatch.report.words import percent, unequal
from tests.report.reported import Reader
from tests.tiny import make_set, silent, tiny_config

pytestmark = pytest.mark.slow

METHODS = ("mpamatch", "pccs", "lpd", "supervised")
FILES = ["MODEL_CARD.md", "report.html", "summary.json"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue").root


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """A run of each kind: image prototypes, a teacher's, learnable ones of the foreground alone, none."""
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        train(tiny_config(root, method, {"engine.steps": 3}), folder / method, console=silent())
    return folder


@pytest.fixture(scope="module")
def reports(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("reports")
    for method in METHODS:
        assert main(["report", str(runs / method), "--out", str(out / method), "--device", "cpu"]) == 0
    words = [str(runs / method) for method in ("supervised", "mpamatch", "lpd")]
    assert main(["report", *words, "--out", str(out / "several"), "--device", "cpu"]) == 0
    return out


ALL = (*METHODS, "several")


@pytest.mark.parametrize("method", METHODS)
def test_its_numbers_are_those_of_evaluate(method, runs, reports):
    evaluate_run(runs / method, None, "test", "cpu")
    wanted = json.loads((runs / method / "evaluation-test.json").read_text())
    summary = json.loads((reports / method / "summary.json").read_text(), parse_constant=pytest.fail)["runs"][0]
    assert {name: wanted[name] for name in summary["scores"]} == summary["scores"]
    assert set(wanted) - set(summary["scores"]) == {"run", "data"}
    page = Reader(reports / method / "report.html")
    classes = page.rows("class-scores")
    for number, measure in enumerate(("dice", "iou", "precision", "recall")):
        found = {name: classes[name][2 * number] for name in wanted[measure]}
        assert found == {name: "–" if value is None else value for name, value in wanted[measure].items()}
    means = page.rows("mean-scores")
    for words, name in (("mean Dice over all classes", "mdice"), ("mean IoU without the background", "foreground_iou")):
        assert means[words][0] == wanted[name]
        assert means[words][2] == wanted["per_image"][name]
    objects = [row[0] for row in page.rows("object-scores").values() if row]
    assert objects == ["–" if v is None else v for v in (wanted["objects"][n] for n in ("f1", "dice", "hausdorff"))]
    card = (reports / method / "MODEL_CARD.md").read_text()
    assert f"| mean | {percent(wanted['mdice'])}" in card
    assert f"F1 {percent(wanted['objects']['f1'])} %" in card


@pytest.mark.parametrize("method", METHODS)
def test_pixels_images_and_calibration_agree_with_each_other(method, reports):
    summary = read_json(reports / method / "summary.json")["runs"][0]
    total = sum(map(sum, summary["confusion"]))
    hit = sum(line[i] for i, line in enumerate(summary["confusion"]))
    calibration = summary["calibration"]
    assert sum(one["pixels"] for one in calibration["reliability"]) == total
    right = sum(one["pixels"] * (one["accuracy"] or 0) for one in calibration["reliability"])
    assert right == pytest.approx(hit, rel=1e-9)
    means = [one["mdice"] for one in summary["images"]]
    assert sum(means) / len(means) == pytest.approx(summary["scores"]["per_image"]["mdice"], rel=1e-12)
    for kind in ("dice", "precision"):
        for name, ends in summary["intervals"][kind].items():
            assert ends is None or 0 <= ends[0] <= ends[1] <= 1, name


def test_what_was_trained_on_what_is_told(reports, root):
    summary = read_json(reports / "mpamatch" / "summary.json")["runs"][0]
    assert summary["data"]["trained_on"] == {
        "labelled": {"images": 4, "groups": 1},
        "unlabelled": {"images": 12, "groups": 3},
    }
    assert summary["threshold"] == summary["calibration"]["own_threshold"] == 0.95
    assert [one["threshold"] for one in summary["calibration"]["thresholds"]].count(0.95) == 1
    assert summary["training"]["memory_mb"] > 50
    assert summary["curves"]["losses"]["loss"][0] == [1, 2, 3]
    for file in FILES:
        text = (reports / "mpamatch" / file).read_text()
        assert str(root.parent) not in text  # a report is shown to others


def test_prototypes_are_shown_where_there_are_some(reports):
    for method, classes, per_class in (("mpamatch", 2, 2), ("pccs", 2, None), ("lpd", 1, 3)):
        summary = read_json(reports / method / "summary.json")["runs"][0]["prototypes"]
        count = len(summary["classes"]) * summary["per_class"]
        assert len(summary["classes"]) == classes
        assert per_class in (None, summary["per_class"])
        assert len(summary["similarity"]) == count
        assert all(summary["similarity"][i][i] == pytest.approx(1) for i in range(count))
        for shares in summary["share"].values():
            assert sum(shares) in (pytest.approx(1), 0)
        page = Reader(reports / method / "report.html")
        alts = [tag.attributes["alt"] or "" for tag in page.named("img")]
        patches = sum(len(p) for of_class in summary["patches"].values() for p in of_class)
        assert sum(alt.startswith("Patch of") for alt in alts) == patches > 0
        assert sum(alt.startswith("Map of") for alt in alts) == count
    assert read_json(reports / "supervised" / "summary.json")["runs"][0]["prototypes"] is None
    assert "has no image prototypes" in (reports / "supervised" / "report.html").read_text()


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_fetched_from_elsewhere(name, reports):
    text = (reports / name / "report.html").read_text()
    page = Reader(reports / name / "report.html")
    for tag in page.tags:
        for attribute in ("src", "href", "srcset", "action"):
            value = tag.attributes.get(attribute)
            assert value is None or value.startswith(("data:", "#")), (tag.name, value[:80])
    assert page.named("script", "iframe", "object") == []
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 5_000_000


@pytest.mark.parametrize("name", ALL)
def test_it_can_be_read_without_seeing_it(name, reports):
    """Language, one h1 and headings without a gap, words for every picture, a table behind every figure."""
    page = Reader(reports / name / "report.html")
    assert page.named("html")[0].attributes["lang"] == "en"
    levels = [int(tag.name[1]) for tag in page.named("h1", "h2", "h3", "h4", "h5")]
    assert levels.count(1) == 1 == levels[0]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(len(tag.attributes.get("alt") or "") > 5 for tag in page.named("img"))
    charts = [tag for tag in page.named("svg") if "chart" in (tag.attributes.get("class") or "")]
    assert len(charts) >= 5
    for chart in charts:
        assert len(chart.attributes["aria-label"] or "") > 20
        figure = next(tag for tag in reversed(chart.parents) if tag.name == "figure")
        inside = [tag for tag in page.tags if figure in tag.parents]
        assert {"details", "table", "figcaption"} <= {tag.name for tag in inside}
    keys = [tag.attributes["id"] for tag in page.tags if tag.attributes.get("id")]
    assert len(keys) == len(set(keys))
    targets = {f"#{key}" for key in keys}
    assert {tag.attributes["href"] for tag in page.named("a")} <= targets
    for table in page.named("table"):
        assert any(tag.name == "caption" for tag in table.children)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    dark, bright = sorted([luminance(one), luminance(other)])
    return (bright + 0.05) / (dark + 0.05)


def mixed(colour, base, share):
    """`share` of `colour` over `base`."""
    values = [round(share * int(colour[i : i + 2], 16) + (1 - share) * int(base[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{value:02x}" for value in values)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_what_they_are_on(scheme):
    """WCAG 2.1: 4.5 for words, 3 for lines; the strongest shades of matrices are 35 and 52 percent."""
    blocks = re.findall(r":root \{(.*?)\}", _shipped("page.css"), re.S)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme]))
    for words in ("text", "muted", "link"):
        for ground in ("paper", "card"):
            assert contrast(colours[words], colours[ground]) >= 4.5, (words, ground)
    assert contrast(colours["text"], colours["warn"]) >= 4.5
    for shade in ("cool", "warm"):
        assert contrast(colours["text"], mixed(colours[shade], colours["paper"], 0.35)) >= 4.5
        assert contrast(colours["text"], mixed(colours[shade], colours["card"], STRONGEST)) >= 4.5
    for number in range(8):
        assert contrast(colours[f"s{number}"], colours["card"]) >= 3, number


# Several runs


def test_several_runs_are_compared_with_the_first_image_by_image(reports):
    summary = read_json(reports / "several" / "summary.json")
    first, *others = summary["runs"]
    assert [(one["run"], one["minus"]) for one in summary["comparison"]] == [
        (one["name"], first["name"]) for one in others
    ]
    for one, other in zip(summary["comparison"], others, strict=True):
        change = [b["mdice"] - a["mdice"] for a, b in zip(first["images"], other["images"], strict=True)]
        assert one["by_image"] == pytest.approx(change)
        assert one["per_image"]["mdice"]["difference"] == pytest.approx(sum(change) / len(change))
        wanted = other["scores"]["mdice"] - first["scores"]["mdice"]
        assert one["pooled"]["mdice"]["difference"] == pytest.approx(wanted)
    page = Reader(reports / "several" / "report.html")
    rows = page.rows("run-scores")
    assert [rows[one["name"]][1] for one in summary["runs"]] == [one["scores"]["mdice"] for one in summary["runs"]]


def test_what_runs_do_not_have_in_common_is_said(reports):
    runs = read_json(reports / "several" / "summary.json")["runs"]
    assert [line.split(" (")[0] for line in unequal(runs[:2])] == [
        "Each is one run: with another seed or other labels their order may change"
    ]
    runs[1]["training"]["steps"], runs[1]["settings"]["all"]["engine.seed"] = 99, 5
    said = unequal(runs[:2])[1:]
    assert said == [
        "They differ in steps, not in their method alone (supervised: 3; mpamatch: 99).",
        "They differ in seed, not in their method alone (supervised: 0; mpamatch: 5).",
    ]
    assert "Each is one run" in (reports / "several" / "report.html").read_text()


def test_a_run_compared_with_its_copy_differs_in_nothing(runs, tmp_path):
    copy = shutil.copytree(runs / "mpamatch", tmp_path / "mpamatch")
    assert main(["report", str(runs / "mpamatch"), str(copy), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    summary = read_json(tmp_path / "out" / "summary.json")
    assert len({one["name"] for one in summary["runs"]}) == 2
    one = summary["comparison"][0]
    assert one["pooled"]["mdice"]["difference"] == 0
    assert set(one["by_image"]) == {0}


# What a reader must be warned of


def test_one_patient_gives_no_interval_and_the_page_says_so(runs, root, tmp_path):
    own = shutil.copytree(root, tmp_path / "own")
    parts = read_json(own / "parts.json")
    for name in parts["parts"]["test"]:
        parts["groups"][name] = "the only one"
    write_json(own / "parts.json", parts)
    words = ["report", str(runs / "supervised"), "--data", str(own), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 0
    summary = read_json(tmp_path / "out" / "summary.json")["runs"][0]
    assert summary["intervals"]["mdice"] is None
    assert summary["calibration"]["ece_interval"] is None
    for file in ("report.html", "MODEL_CARD.md"):
        assert "From one patient no interval can be computed" in (tmp_path / "out" / file).read_text()


def test_validation_images_and_few_patients_are_said(runs, tmp_path):
    run, out = str(runs / "mpamatch"), tmp_path / "out"
    assert main(["report", run, "--part", "validation", "--out", str(out), "--device", "cpu"]) == 0
    text = (out / "report.html").read_text()
    assert "by which the best checkpoint" in text
    assert "A good τ keeps many pixels" in text
    assert "The labels are of 1 patient." in text


def test_without_a_folder_it_is_written_beside_the_run(runs, tmp_path):
    run = shutil.copytree(runs / "supervised", tmp_path / "run")
    before = {path.name for path in run.iterdir()}
    assert main(["report", str(run), "--device", "cpu"]) == 0
    assert sorted({path.name for path in run.iterdir()} - before) == FILES


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["supervised", "mpamatch"], "several runs need a folder"),
        (["supervised", "supervised", "--out", "OUT"], "a run is named twice"),
        (["supervised", "--part", "tset", "--out", "OUT"], "unknown part 'tset'"),
        (["nowhere", "--out", "OUT"], "nowhere"),
        (["supervised", "--data", "nowhere", "--out", "OUT"], "no such folder"),
        (["supervised", "--out", "supervised/config.yaml"], "is a file"),
    ],
)
def test_bad_words_get_one_sentence_and_nothing_is_written(words, sentence, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    words = [str(tmp_path / "out") if word == "OUT" else word for word in words]
    assert main(["report", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert said.count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_runs_on_other_images_are_not_compared(runs, root, tmp_path, capsys):
    own = shutil.copytree(root, tmp_path / "own")
    parts = read_json(own / "parts.json")
    parts["parts"]["train"].append(parts["parts"]["test"].pop())
    write_json(own / "parts.json", parts)
    other = tmp_path / "other"
    train(tiny_config(own, "supervised"), other, console=silent())
    assert main(["report", str(runs / "supervised"), str(other), "--out", str(tmp_path / "out")]) == 2
    assert "was scored on other images" in capsys.readouterr().err


def test_names_are_names_whatever_they_hold(reports, tmp_path):
    """A class called <b>, a run with a quote, an image whose name is no UTF-8: nothing of it is markup."""
    text = (reports / "several" / "summary.json").read_text()
    text = text.replace('"gland"', r'"<b>&\"|gland"').replace("tissue-", r"\udcff<i>'tissue-")
    summary = json.loads(text)
    report = Report([RunContent(one) for one in summary["runs"]], summary["comparison"])
    write_report(report, tmp_path)
    page = Reader(tmp_path / "report.html")
    assert page.named("b", "i") == []
    assert '<b>&"|gland' in page.rows("run1-class-scores")
    assert r"\udcff<i>'tissue-" in page.named("main")[0].text
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert '| &lt;b>&"\\|gland |' in card


# Charts


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis("", 0, 1), [0, 0.25, 0.5, 0.75, 1]),
        (Axis("", 0, 400), [0, 100, 200, 300, 400]),
        (Axis("", -1, 1), [-1, -0.5, 0, 0.5, 1]),
        (Axis("", 0.01, 10, log=True), [0.01, 0.1, 1, 10]),
    ],
)
def test_ticks_are_round_and_within_the_range(axis, ticks):
    assert axis.ticks() == pytest.approx(ticks)


def test_ranges_hold_what_they_are_of():
    low, high = range_of([3.0, 5.0, float("nan")])
    assert low < 3
    assert high > 5
    assert range_of([], log=True) == (0.1, 1.0)
    assert range_of([0.0, 0.02, 30.0], log=True) == (0.01, 100.0)
    low, high = range_of([2.0, 2.0])
    assert low < 2 < high
