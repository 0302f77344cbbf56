"""The page in a browser, as its readers use it: sorting, filters, the choice of lines, three widths, two themes, paper."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from browser import Browser
from report_factory import every_kind, many
from run_factory import make_run

from edgelm.report import write

_AXE = "axe-core-4.10.3"
_AXE_SHA256 = "0f2b4d7dcdf7d1219df8d1959ad68e565f51d14c3f0d88bb71cd59abeb956292"
# What is far below the fold answers `checkVisibility` from before the last change; boxes are always of now.
_SEEN = "each.checkVisibility() && each.getClientRects().length"
_VISIBLE = f"(selector) => [...document.querySelectorAll(selector)].filter((each) => {_SEEN})"
_ROWS = "table.runs tbody tr"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    fifty = many(50)
    thousand = [
        dataclasses.replace(
            run, id=f"{run.id}-{copy}", bundle=dataclasses.replace(run.bundle, name=f"{run.bundle.name}-{copy}")
        )
        for copy in range(20)
        for run in fifty
    ]
    kinds = every_kind()
    every = {
        "1": [make_run()],
        "50": fifty,
        "1000": thousand,
        "every kind": kinds,
        "some": [*kinds[:3], *kinds[6:7], *kinds[9:12], *kinds[15:]],
    }
    for name, runs in every.items():
        write(runs, folder / f"{name}.html", battery_wh=20)
    return {name: folder / f"{name}.html" for name in every}


def _count(browser: Browser, selector: str) -> int:
    count: int = browser.run(f"({_VISIBLE})({selector!r}).length")
    return count


@pytest.mark.parametrize(("name", "dark"), [("1", True), ("50", False), ("every kind", False), ("every kind", True)])
def test_fits_every_width_and_asks_for_nothing(browser: Browser, pages: dict[str, Path], name: str, dark: bool) -> None:
    browser.open(pages[name], width=1280, dark=dark)
    assert browser.console == []
    for width in (390, 820, 1280):
        browser.look(width=width, dark=dark)
        assert browser.run("document.documentElement.scrollWidth") == width
        # Nothing reaches beyond the window, apart from what is drawn into a chart and clipped there.
        beyond = browser.run(
            f"({_VISIBLE})('body *').filter((each) => !each.closest('svg') && "
            f"each.getBoundingClientRect().right > {width} + 0.5).map((each) => each.outerHTML.slice(0, 200))"
        )
        assert beyond == []
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(14, 18, 23)" if dark else "rgb(245, 246, 248)")


def test_sorting(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["50"])
    table = "document.querySelector('table.runs')"
    column = f"[...{table}.tHead.rows[0].cells].findIndex((each) => each.textContent.includes('%s'))"

    def values(heading: str) -> list[float]:
        told: list[str] = browser.run(
            f"[...{table}.tBodies[0].rows].map((row) => row.cells[{column % heading}].dataset.value)"
        )
        return [float(value) for value in told]

    def press(heading: str) -> str:
        cell = f"{table}.tHead.rows[0].cells[{column % heading}]"
        browser.run(f"{cell}.querySelector('button').click()")
        state: str = browser.run(f"{cell}.getAttribute('aria-sort')")
        return state

    assert press("Accuracy") == "descending"
    assert values("Accuracy") == sorted(values("Accuracy"), reverse=True)
    assert press("Accuracy") == "ascending"
    assert values("Accuracy") == sorted(values("Accuracy"))
    assert press("File") == "ascending"
    assert values("File") == sorted(values("File"))
    assert browser.run(f"{table}.querySelectorAll('[aria-sort]').length") == 1


def _filter(browser: Browser, script: str) -> str:
    browser.run(f"(async () => {{ {script}; document.querySelector('.filters').dispatchEvent(new Event('input')); "
                "await new Promise((done) => setTimeout(done, 250)); })()")  # fmt: skip
    told: str = browser.run("document.querySelector('.filters [role=status]').textContent")
    return told


def test_filters(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["every kind"])
    assert browser.run("document.querySelector('.filters [role=status]').textContent") == "19 of 19 runs"
    every = _count(browser, _ROWS)
    told = _filter(browser, "document.getElementById('filter-runtime').value = 'onnx'")
    assert told == "5 of 19 runs"
    assert _count(browser, _ROWS) == 5 < every
    assert browser.run(f"({_VISIBLE})('{_ROWS}').every((row) => row.dataset.runtime === 'onnx')")
    # Charts and lists follow: a point and a folded entry for a run that is shown, none for another.
    assert browser.run(f"({_VISIBLE})('g[data-run], details[data-run]').every((each) => "
                       "document.querySelector(`tr[data-run='${each.dataset.run}']`).dataset.runtime === 'onnx')")  # fmt: skip
    _filter(browser, "document.getElementById('filter-runtime').value = ''")
    assert _filter(browser, "document.getElementById('filter-words').value = 'INT8 raspberry'") == "3 of 19 runs"
    _filter(browser, "document.getElementById('filter-words').value = ''")
    assert _filter(browser, "document.getElementById('filter-front').checked = true") == "4 of 19 runs"


def test_the_reader_chooses_the_lines(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["50"])
    assert browser.run("document.querySelectorAll('.draw').length") == 50
    shown = _count(browser, "[data-overlays=answers-1] path")
    first = "document.querySelector('.draw:checked')"
    run = browser.run(f"{first}.closest('tr').dataset.run")
    browser.run(f"{first}.click()")
    assert browser.run(f"({_VISIBLE})('.overlays path[data-runs=\"{run}\"]').length") == 0
    other = browser.run(
        "(() => { const box = document.querySelector('table.runs .draw:not(:checked):not([aria-label=\"Draw run "
        f"{run} in the charts\"])'); box.click(); return box.closest('tr').dataset.run; }})()"
    )
    assert browser.run(f"({_VISIBLE})('[data-overlays=answers-1] path[data-runs=\"{other}\"]').length") > 0
    assert browser.run(f"({_VISIBLE})('[data-overlays=answers-1] li[data-run=\"{other}\"]').length") == 1
    assert _count(browser, "[data-overlays=answers-1] path") == shown
    # A ninth is refused: its box stays empty.
    box = "document.querySelector('table.runs .draw:not(:checked)')"
    assert not browser.run(f"(() => {{ const box = {box}; box.click(); return box.checked; }})()")


def test_a_thousand_runs_lay_out_what_fifty_do(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["1000"])
    assert browser.console == []
    # Two machines, and of each the first 50 rows, and 8 lines in each of two charts.
    assert _count(browser, _ROWS) == 100
    assert _count(browser, ".overlays path") == 2 * 2 * 8
    assert _count(browser, "details[data-run]") == 0
    assert browser.run("document.querySelector('.more').textContent") == "Show all 800 rows"
    browser.run("document.querySelector('.more').click()")
    assert _count(browser, _ROWS) == 850
    assert _filter(browser, "document.getElementById('filter-words').value = 'model-003-7'") == "8 of 1000 runs"
    assert _count(browser, _ROWS) == 8
    # What is folded away is made when it is opened, and filtered like the rest.
    assert browser.run("document.querySelectorAll('*').length") < 100_000
    where = "[...document.querySelectorAll('.fold')].find((each) => each.textContent.includes('What ran where'))"
    browser.run(f"(async () => {{ {where}.open = true; await new Promise((done) => setTimeout(done, 50)); }})()")
    assert browser.run(f"{where}.querySelectorAll('tbody tr').length") == 800
    assert browser.run(
        f"[...{where}.querySelectorAll('tbody tr')].filter((row) => row.getClientRects().length).length"
    ) in range(1, 9)
    assert browser.run(f"{where}.querySelector('details[data-run] dl')") is None
    assert browser.console == []


def test_the_keyboard_reaches_everything(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["every kind"])
    wanted = browser.run(
        f"({_VISIBLE})('a[href], button, input, select, summary').map((each, index) => (each.dataset.order = index)).length"
    )
    reached = []
    for _ in range(wanted):
        browser.press("Tab", 9)
        told = browser.run(
            "(() => { const style = getComputedStyle(document.activeElement);"
            " return [document.activeElement.dataset.order ?? null, style.outlineStyle]; })()"
        )
        reached.append(told)
    # In the order in which they stand, and each with a ring around it.
    assert [order for order, _ in reached] == [str(index) for index in range(wanted)]
    assert {outline for _, outline in reached} <= {"solid", "auto"}


def test_enter_sorts(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["50"])
    browser.run("document.querySelectorAll('table.runs thead button')[1].focus()")
    browser.press("Enter", 13)
    assert (
        browser.run("document.querySelector('table.runs').tHead.rows[0].cells[1].getAttribute('aria-sort')")
        == "descending"
    )


def test_on_paper(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["every kind"])
    # A4 less Chromium's margins of 1 cm: 19 cm at 96 dots an inch.
    browser.look(width=718, paper=True)
    assert browser.run("document.documentElement.scrollWidth") == 718
    assert _count(browser, "#filters, .draw, .more") == 0
    assert browser.run("getComputedStyle(document.querySelector('table.runs tbody tr')).display") == "table-row"
    document = browser.print()
    assert document.startswith(b"%PDF")
    # Afterwards everything is folded as it was.
    assert _count(browser, "details[data-run][open]") == 0


def test_without_its_script_the_page_is_whole(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    text = pages["50"].read_text(encoding="utf-8")
    bare = tmp_path / "bare.html"
    head, rest = text.split("<script>", 1)
    bare.write_text(head + rest.split("</script>", 1)[1].rsplit("<script>", 1)[0], encoding="utf-8")
    browser.open(bare)
    assert _count(browser, _ROWS) == 50
    assert _count(browser, ".overlays path") > 0
    assert _count(browser, "input, .filters, .more") == 0


@pytest.fixture(scope="module")
def axe() -> str:
    """Return axe-core's source, fetched once from the npm registry into the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgelm-tests"
    archive = cache / f"{_AXE}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("neither axe-core in the cache nor npm to fetch it")
        cache.mkdir(parents=True, exist_ok=True)
        name, version = _AXE.rsplit("-", 1)
        try:
            done = subprocess.run(
                [npm, "pack", "--fetch-retries=0", f"{name}@{version}"],
                cwd=cache,
                capture_output=True,
                timeout=30,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.skip("the npm registry does not answer")
        if done.returncode != 0:
            pytest.skip("axe-core cannot be had from the npm registry")
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == _AXE_SHA256
    with tarfile.open(archive) as opened:
        member = opened.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_axe_finds_nothing(browser: Browser, pages: dict[str, Path], axe: str, width: int, dark: bool) -> None:
    # A page with each kind of thing once: axe takes half a second for a thousand elements.
    browser.open(pages["some"], width=width, dark=dark)
    browser.run("for (const each of [...document.querySelectorAll('details[data-run]')].slice(0, 2)) each.open = true")
    browser.run(f"{axe}; 0")
    found = browser.run(
        "axe.run(document).then((told) => told.violations.map((each) => `${each.id}: ${each.help}: "
        "${each.nodes.length} × ${each.nodes[0].html.slice(0, 160)} ${each.nodes[0].failureSummary}`))"
    )
    assert found == []
