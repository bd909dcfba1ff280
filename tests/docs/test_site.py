"""The site is built without a warning, its links lead somewhere, and it has every public name.

Rule: what Sphinx made is read as a browser would read it.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import pytest
from playwright.async_api import async_playwright

import bridgehead
from bridgehead._tools.cli.group import COMMANDS
from support.docstrings import public
from support.lab import CHROMIUM, CONTRASTS, FLAGS, NEEDS_CHROMIUM, PATIENCE
from support.pages import PAGES, SITE

pytestmark = pytest.mark.docs

CODE = ("pre", "script", "style")


class Page(HTMLParser):
    """The links, pictures, anchors and plain text of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.text = ""  # without blocks of code
        self._in_code = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_code += tag in CODE
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name == ("src" if tag in ("img", "script") else "href") and value:
                self.links.add(value)

    def handle_endtag(self, tag: str) -> None:
        self._in_code -= tag in CODE

    def handle_data(self, data: str) -> None:
        if not self._in_code:
            self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, with warnings as errors; return its folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    built = subprocess.run(
        [*command, "-d", folder / "doctrees", SITE, folder / "html"], capture_output=True, text=True
    )
    assert (built.returncode, built.stderr) == (0, ""), built.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    files = [file for file in site.rglob("*.html") if "_static" not in file.parts]
    return {file: Page(file.read_text()) for file in files}


def test_every_page_and_notebook_is_in_the_site(site: Path) -> None:
    sources = [*PAGES, *SITE.glob("*.ipynb")]
    assert len(sources) > 10
    for source in sources:
        page = site / source.relative_to(SITE).with_suffix(".html")
        assert page.exists()
        assert source.suffix == ".md" or "cell_output" in page.read_text()


def test_every_internal_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    broken = []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchored = not parts.fragment or (
                target in pages and unquote(parts.fragment) in pages[target].anchors
            )
            if not target.exists() or not target.stat().st_size or not anchored:
                broken.append(f"{file.name}: {link}")
    assert not broken


def test_nothing_is_loaded_from_the_network(pages: dict[Path, Page], site: Path) -> None:
    for file in pages:
        text = file.read_text()
        assert 'src="http' not in text, file
        assert '<link rel="stylesheet" type="text/css" href="http' not in text, file


def test_every_public_name_is_in_the_reference(pages: dict[Path, Page]) -> None:
    anchors = {
        anchor
        for file, page in pages.items()
        if "reference" in file.parts
        for anchor in page.anchors
    }
    names = [f"bridgehead.{name}" for name, _ in public()]
    names += ["pytest_bridgehead.bridge", "pytest_bridgehead.loopback_bridge"]
    assert [name for name in names if name not in anchors] == []


def test_a_signature_names_no_private_class(site: Path) -> None:
    source = Path(bridgehead.__file__).parent
    classes = {
        name
        for file in source.rglob("*.py")
        for name in re.findall(r"^class (\w+)", file.read_text(), re.MULTILINE)
    }
    private = classes - set(bridgehead.__all__)
    for page in site.glob("reference/**/*.html"):
        for signature in re.findall(r'<dt class="sig.*?</dt>', page.read_text(), re.DOTALL):
            words = set(re.findall(r"\w+", re.sub(r"<[^>]+>", "", signature)))
            assert words.isdisjoint(private), (page.name, words & private)


def test_markup_that_was_not_understood_is_not_shown(pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        for mark in ("``", ">>>", "~bridgehead", "~typing"):
            assert mark not in page.text, file


@NEEDS_CHROMIUM
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_each_page_can_be_read_on_a_narrow_screen(
    site: Path, pages: dict[Path, Page], theme: Literal["light", "dark"]
) -> None:
    """Texts have the contrast that WCAG 2 asks for (AA), and no page is wider than the screen."""
    texts, unreadable = 0, list[tuple[str, str]]()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        phone = {"width": 360, "height": 800}  # CSS pixels
        shown = await browser.new_page(viewport=phone, color_scheme=theme)
        shown.set_default_timeout(PATIENCE)
        for file in pages:
            await shown.goto(file.as_uri())
            assert await shown.locator("html").get_attribute("data-theme") == theme
            name = str(file.relative_to(site))
            # The theme has a page that is too wide scroll below its head.
            wide = "parts => parts.filter((part) => part.scrollWidth > part.clientWidth).length"
            is_wide = await shown.locator("html, article").evaluate_all(wide)
            seen = await shown.locator("article").evaluate_all(CONTRASTS)
            texts += len(seen)
            unreadable += [(name, "wider than the screen")] if is_wide else []
            unreadable += [(name, text) for text, ratio in seen if ratio < 4.5]
        await browser.close()
    assert texts > 10 * len(pages)
    assert unreadable == []


@pytest.mark.parametrize("name", ["launch", "attach", "connect", "over"])
def test_the_glance_has_the_arguments_of_a_constructor(name: str) -> None:
    text = (SITE / "reference" / "glance.md").read_text()
    (shown,) = re.findall(rf"`Bridge\.{name}\(.*?\*, (.*?)\)`", text)
    arguments = inspect.signature(getattr(bridgehead.Bridge, name)).parameters.values()
    own = {one.name for one in arguments if one.kind is one.KEYWORD_ONLY}
    assert set(re.findall(r"\w+", shown)) == own - {"lane", "pool", "trust", "allow", "timeout"}


def test_every_command_has_its_help(site: Path, pages: dict[Path, Page]) -> None:
    file = site / "reference" / "cli.html"
    assert set(COMMANDS) <= pages[file].anchors
    assert file.read_text().count("Usage: bridgehead") == 1 + len(COMMANDS)


@pytest.mark.parametrize("folder", ["guides", "explanation"])
def test_the_index_of_a_folder_has_a_line_for_each_page(folder: str) -> None:
    index = (SITE / folder / "index.md").read_text()
    pages = {page.name for page in (SITE / folder).glob("*.md")} - {"index.md"}
    assert [name for name in sorted(pages) if f"({name})" not in index] == []
