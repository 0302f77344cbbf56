"""A browser that the tests of the page share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, find_chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on PATH: the page is not opened")
    with Browser(program, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser
