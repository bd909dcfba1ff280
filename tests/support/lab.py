"""A notebook in a real JupyterLab or Notebook 7, in a real Chromium.

Rule: the test starts the server and the browser and ends them through their own handles. Nothing
here looks at what a test is about; the page's requests to other addresses are noted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.async_api import Locator, Page, Request, async_playwright, expect

from support.servers import TOKEN, serving

CHROMIUM = shutil.which("chromium")
PATIENCE = 60_000.0  # ms; nothing here measures speed
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"
)

LAB, NOTEBOOK = "jupyterlab", "notebook"
PLACES = {LAB: "doc/tree", NOTEBOOK: "notebooks"}  # of a notebook, below the server's address
OPTIONS = {
    LAB: [
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
        "--LabApp.news_url=None",
        "--LabApp.expose_app_in_browser=True",
    ],
    NOTEBOOK: ["--JupyterNotebookApp.expose_app_in_browser=True"],
}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

READY = """
async () => {
    const context = window.jupyterapp.shell.currentWidget.sessionContext;
    await context.ready;
    await context.session.kernel.info;
}
"""

# For each element with text of its own: the text, and its contrast to the background, by WCAG 2:
# from 1 for the same colour to 21 for black on white.
CONTRASTS = """
(outputs) => {
    const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const parts = (colour) => {  // the browser computes what color-mix() and others give
        paint.clearRect(0, 0, 1, 1);
        paint.fillStyle = colour;
        paint.fillRect(0, 0, 1, 1);
        const [r, g, b, alpha] = paint.getImageData(0, 0, 1, 1).data;
        return [r, g, b, alpha / 255];
    };
    const luminance = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((value) => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const colour = parts(getComputedStyle(at).backgroundColor);
            if (colour[3] > 0.5) return colour;
        }
        return [255, 255, 255, 1];
    };
    const seen = [];
    for (const output of outputs)
        for (const element of output.querySelectorAll("*")) {
            const texts = [...element.childNodes].filter((node) => node.nodeType == 3);
            const text = texts.map((node) => node.textContent.trim()).join("");
            if (!text) continue;
            const front = luminance(parts(getComputedStyle(element).color));
            const back = luminance(behind(element));
            const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
            seen.push([text, ratio]);
        }
    return seen;
}
"""


@dataclass
class Lab:
    """A notebook in a browser."""

    page: Page
    url: str  # of the server
    asked: list[str] = field(default_factory=list)  # requests to other addresses

    def output(self, number: int) -> Locator:
        """Return the output of a cell, by its number from 1."""
        return self.page.locator(".jp-CodeCell").nth(number - 1).locator(".jp-OutputArea-output")

    async def command(self, name: str, **options: Any) -> None:
        """Start a command without waiting: a command that runs cells ends when they end."""
        await self.page.evaluate(
            "([name, options]) => { window.jupyterapp.commands.execute(name, options); }",
            [name, options],
        )

    async def theme(self, name: str) -> None:
        await self.command("apputils:change-theme", theme=f"JupyterLab {name}")
        is_small = str(name == "Light").lower()
        await expect(self.page.locator("body")).to_have_attribute("data-jp-theme-light", is_small)
        # A splash screen covers the page until its style sheet is loaded.
        await expect(self.page.locator("#jupyterlab-splash")).to_have_count(0)

    async def run_cell(self, number: int) -> None:
        """Start a cell, by its number from 1."""
        await self.page.locator(".jp-CodeCell .cm-content").nth(number - 1).click()
        await self.page.keyboard.press("Shift+Enter")


def make_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all of Jupyter's folders in a folder whose path is short, and use them from now on."""
    for folder in ("run", "config/labconfig", "data", "books"):
        (root / folder).mkdir(mode=0o700, parents=True)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(root / "run"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(root / "config"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(root / "data"))
    announcements = {"@jupyterlab/apputils-extension:announcements": True}
    settings = json.dumps({"disabledExtensions": announcements})
    (root / "config/labconfig/page_config.json").write_text(settings)
    # A cell out of view would be taken out of the page, and the cells after it be counted anew.
    windowing = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
    overrides = root / "config/labconfig/default_setting_overrides.json"
    overrides.write_text(json.dumps(windowing))


@asynccontextmanager
async def opened(
    root: Path,
    cells: Sequence[str],
    *,
    application: str = LAB,
    width: int = 900,
    height: int = 1900,
) -> AsyncIterator[Lab]:
    """Open a notebook with these cells, whose kernel is ready.

    ``make_folders`` has made the folders. All cells should be in the window, or the last are not
    drawn.
    """
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, root / "books/shown.ipynb")
    options = [*OPTIONS[application], f"--ServerApp.root_dir={root / 'books'}"]
    async with (
        serving(application, *options, runtime=str(root / "run")) as url,
        async_playwright() as playwright,
    ):
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = await browser.new_page(
                viewport={"width": width, "height": height}, device_scale_factor=1.5
            )
            page.set_default_timeout(PATIENCE)
            expect.set_options(timeout=PATIENCE)
            shown = Lab(page, url)

            def note(request: Request) -> None:
                if not request.url.startswith((url, "data:", "blob:")):
                    shown.asked.append(request.url)

            page.on("request", note)
            await page.goto(f"{url}{PLACES[application]}/shown.ipynb?token={TOKEN}")
            await page.locator(".jp-CodeCell").nth(len(cells) - 1).wait_for()
            await page.wait_for_function("window.jupyterapp?.shell.currentWidget")
            # If a cell runs before there is a kernel, JupyterLab asks the user for one.
            await page.evaluate(READY)
            yield shown
        finally:
            await browser.close()
