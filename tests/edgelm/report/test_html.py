from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_factory import energy_of, every_kind, make_generation_run, over_time, turns
from run_factory import PI, SERVER, make_run, replaced

from edgelm.bench import Run
from edgelm.errors import InputError, OutputError
from edgelm.report import Result, render_html, render_json, render_markdown, report_values, write
from edgelm.report.foreign import ForeignRun, parse_llama_bench

HOSTILE = (
    "<script>alert(1)</script><img src=https://e.example/x onerror=alert(2)>\"'&`|*b*\n# h [l](https://e.example) @you"
)
VOID = {"meta", "br", "line", "rect", "circle", "polyline"}
LOADING = {"src", "href", "srcset", "poster", "action", "formaction", "data", "background", "xlink:href"}


class Page(HTMLParser):
    """Reads a page, and complains of what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(each == tag for each, _ in self.tags)


def _hostile() -> Run:
    run = make_run(name=HOSTILE, recipe=HOSTILE, machine=dataclasses.replace(SERVER, cpu_model=HOSTILE), match=False)
    run = replaced(run, "runtime", notes=(HOSTILE,), delegate=HOSTILE, runtime_version=HOSTILE)
    run = replaced(run, "bundle", name=HOSTILE, architecture={HOSTILE: HOSTILE}, family=HOSTILE)
    run = replaced(run, "profile", title=HOSTILE, statement=HOSTILE)
    return dataclasses.replace(run, packages={HOSTILE: HOSTILE}, id=HOSTILE, started=HOSTILE)


RUNS: dict[str, list[Result]] = {
    "one": [make_run()],
    "two machines": [make_run(), make_run(machine=SERVER, match=False)],
    "fifty": [make_run(name=f"m{index}", median_s=0.001 * 1.2**index, seed=index) for index in range(50)],
    "no accuracy": [make_run(name=name, accuracy=None) for name in "ab"],
    "one query": [make_run(queries=1)],
    "all alike": [dataclasses.replace(make_run(), id=str(index)) for index in range(3)],
    "perfect": [make_run(name=name, accuracy=1.0) for name in "ab"],
    "hopeless": [make_run(name=name, accuracy=0.0) for name in "ab"],
    "deadline": [make_run(deadline_s=0.004), make_run(name="other")],
    "emulated": [make_run(machine=dataclasses.replace(PI, emulated_on="x86_64"), match=False)],
    "no profile": [dataclasses.replace(make_run(), profile=None)],
    "no timing": [replaced(make_run(), "samples", tokenize_s=None, run_s=None, tokens=None, sequence_length=None)],
    "energy": [dataclasses.replace(make_run(name=n), energy=energy_of(joule)) for n, joule in (("a", 0.012), ("b", 0.03))],
    "energy not to be relied on": [dataclasses.replace(make_run(), energy=energy_of(0.012, reliable=False))],
    "over time": [over_time(make_run(name=name)) for name in "ab"],
    "in turns": turns([make_run(name=name, median_s=m, seed=s) for s, (name, m) in enumerate((("a", 0.004), ("b", 0.005)))]),
    "language models": [make_generation_run(depth=depth) for depth in (0, 512)],
    "every kind": every_kind(),
    "hostile": [_hostile()],
    "hostile elsewhere": parse_llama_bench(json.dumps([
        {"model_filename": f"{HOSTILE}.gguf", "cpu_info": HOSTILE, "backends": HOSTILE, "build_commit": HOSTILE,
         "n_prompt": 0, "n_gen": 8, "avg_ts": 3.0, "test_time": HOSTILE}])),
}  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def runs(request: pytest.FixtureRequest) -> list[Result]:
    return RUNS[request.param]


@pytest.fixture(scope="module")
def page(runs: list[Result]) -> Page:
    return Page(render_html(runs))


def test_the_page_is_well_formed_and_has_every_run(page: Page, runs: list[Result]) -> None:
    assert sum(tag == "details" and "data-run" in attributes for tag, attributes in page.tags) == len(runs)
    for run in runs:
        name = run.model if isinstance(run, ForeignRun) else run.bundle.name
        assert " ".join(name.split()) in page.text


def test_the_page_loads_nothing(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "img", "base", "form", "video", "audio", "use", "image"}
        loading = {name for name in LOADING & attributes.keys() if not (attributes[name] or "").startswith("#")}
        assert not loading, (tag, attributes)
        # No inline handlers or styles: the content security policy would refuse them.
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert (page.count("script"), page.count("style")) == (2, 1)


def test_the_policy_allows_this_style_and_this_script_alone(runs: list[Result]) -> None:
    text = render_html(runs)
    policy = next(
        attributes["content"] or ""
        for tag, attributes in Page(text).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, count in (("style", 1), ("script", 2)):
        found = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in found]
        allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
        assert len(found) == count
        assert f"{tag}-src {allowed};" in policy
        for each in found:
            assert "@import" not in each
            assert "url(" not in each
            assert "//" not in each.replace("// ", "")


def test_a_hostile_name_is_text() -> None:
    text = render_html([_hostile()])
    assert "<img" not in text
    assert text.count("<script>") == 2
    assert "alert(1)" in Page(text).text


def test_hostile_names_in_what_is_folded_away_are_text() -> None:
    runs = [dataclasses.replace(_hostile(), id=str(index)) for index in range(101)]
    text = render_html(runs)
    assert text.count('<script type="text/plain">') > 100
    # Only what the template itself opens and closes: two scripts, and one for each thing that is folded away.
    assert text.count("<script") == text.count("</script>")
    assert "<img" not in text
    Page(text)


def test_drawings_are_labelled(page: Page) -> None:
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        if tag == "path":
            assert attributes.get("class")
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
    assert page.count("caption") == page.count("table")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes]
    assert set(named) <= set(ids)


def test_what_was_not_measured_says_so() -> None:
    text = Page(render_html(RUNS["no accuracy"])).text
    assert "No labelled data was given to the converter." in text
    assert "not measured (no sensor)" in text


def test_few_queries_have_no_p99() -> None:
    run = make_run(queries=50)
    assert run.results.p99_s is None
    found = re.search(r'data-label="p99" data-value=""[^>]*><span class="value">(.*?)<', render_html([run]))
    assert found is not None
    assert found[1] == "—"


def test_another_machine_has_a_banner() -> None:
    text = Page(render_html(RUNS["two machines"])).text
    assert text.count("Not the device’s own numbers.") == 1
    assert "Measured on AMD EPYC 9R14 (x86_64), not on Raspberry Pi 5." in text


def test_emulated_timings_are_not_shown() -> None:
    run = RUNS["emulated"][0]
    assert isinstance(run, Run)
    for text in (render_html([run]), render_markdown([run])):
        assert "its timings mean nothing" in text
        assert f"{run.results.p50_s * 1e3:.2f}" not in text
        assert f"{run.results.throughput_per_s:.0f}" not in text
    assert Page(render_html([run])).count("svg") == 0
    assert "p50" not in report_values([run])["machines"][0]["runs"][0]["figures"]


def test_markdown_has_a_line_for_each_run(runs: list[Result]) -> None:
    text = render_markdown(runs)
    rows = [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(rows) == len(runs)
    # A name must not add a column: a bar in it is escaped, so each row has as many as its heading.
    bars = 0
    for line in text.splitlines():
        if line.startswith("| # |"):
            bars = line.count("|")
        elif re.match(r"\| \d+ \|", line):
            assert len(re.findall(r"(?<!\\)\|", line)) == bars


def test_markdown_of_a_hostile_name_is_text() -> None:
    text = render_markdown([_hostile(), *RUNS["hostile elsewhere"]])
    assert not re.search(r"(?<!\\)<(?!/?sub>)", text)
    assert "https://" not in text
    assert "@you" not in text
    assert not re.search(r"#\d", text)
    assert not re.search(r"(?<!\\)\[l", text)


def test_write_goes_by_the_suffix(tmp_path: Path) -> None:
    write([make_run()], tmp_path / "a.html")
    write([make_run()], tmp_path / "b.MD")
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (tmp_path / "b.MD").read_text(encoding="utf-8").startswith("### ")
    write([make_run()], tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["format"] == "edgelm-report"
    with pytest.raises(OutputError, match="--force"):
        write([make_run()], tmp_path / "a.html")
    write([make_run()], tmp_path / "a.html", force=True)
    with pytest.raises(OutputError, match=r"neither in \.html nor in \.md nor in \.json"):
        write([make_run()], tmp_path / "a.pdf")


def test_nothing_to_report() -> None:
    for render in (render_html, render_markdown, render_json):
        with pytest.raises(InputError, match="no run"):
            render([])
