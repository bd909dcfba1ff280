"""A notebook in a real JupyterLab and a real browser, with a second kernel of another program.

Rule: assertions are about what a person sees, in the light theme and the dark one. The page makes
no request to the network. ``pytest -m servers -k lab --write`` writes the README's picture,
``lab.png``.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image
from playwright.async_api import Locator, Page, Request, async_playwright, expect

from bridgehead import Bridge
from support.servers import TOKEN, serving

CHROMIUM = shutil.which("chromium")
PICTURE = Path(__file__).with_name("lab.png")
PATIENCE = 60_000.0  # ms; nothing here measures speed
MAX_SEND = 200_000  # bytes of the picture
WIDTH, HEIGHT = 900, 1900  # pixels; all cells are in the window, or the last are not drawn

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]

CELLS = [
    """\
%matplotlib inline
import numpy as np, pandas as pd
from bridgehead import SyncBridge

kernel = SyncBridge.attach("training")
kernel""",
    """\
steps = np.random.default_rng(7).standard_normal((4_000_000, 4))
walks = pd.DataFrame(steps.cumsum(axis=0), columns=list("abcd"))

kernel.push(walks=walks, progress=True)  # waits for a running cell""",
    """\
def draw(walks):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.2), layout="tight")
    walks[::20_000].plot(ax=figure.subplots())
    return figure

kernel.call(draw, kernel.ref("walks"), keep="figure")""",
    "kernel.names()",
    'kernel["figure"]',
]

MAGICS = [
    "%load_ext bridgehead\n%bridge launch --on a\n%bridge launch --on b",
    "rows = list(range(100_000))\n%bridge push rows --on a",
    "%bridge names --on a",
    "%%bridge --on a\nfrom tqdm.auto import tqdm\nfor _ in tqdm(rows): pass",
    "%%bridge --all\nimport os\nprint('process', os.getpid())",
    """\
from bridgehead import SyncBridge

kernel = SyncBridge.attach("training")
kernel.run("numbers = [1, 2]\\nnumbers[3]")""",
    "import threading\n\nkernel.push(config={'lock': threading.Lock()})",
]

# Keeps a kernel busy until the test has checked what the notebook shows meanwhile.
BUSY = """
while not __import__("os").path.exists("go"):
    __import__("time").sleep(0.02)
"""

QUIET = [
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
    "--LabApp.news_url=None",
    "--LabApp.expose_app_in_browser=True",
]
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
    const parts = (colour) => {
        const numbers = colour.match(/[\\d.]+/g).map(Number);
        return numbers.length == 3 ? [...numbers, 1] : numbers;
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


# The picture must not show which cell is selected.
PLAIN = """
.jp-cell-toolbar, .jp-Collapser { display: none !important; }
.jp-Cell, .jp-Cell::before, .jp-Cell::after {
    border-color: transparent !important; outline: none !important; box-shadow: none !important;
}
.jp-InputPrompt, .jp-OutputPrompt {
    color: var(--jp-cell-prompt-not-active-font-color) !important; opacity: 0.5 !important;
}
"""


@dataclass
class Lab:
    """A notebook in a browser, and the second kernel."""

    page: Page
    beside: Bridge
    folder: Path  # of the second kernel
    asked: list[str]  # the page's requests to other addresses than the server's

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

    async def picture(self, path: Path) -> None:
        """Write a picture of the cells, from the first to the last, and nothing around them."""
        await self.page.mouse.move(1, 1)
        cells = self.page.locator(".jp-CodeCell")
        first, last = await cells.first.bounding_box(), await cells.last.bounding_box()
        assert first is not None
        assert last is not None
        clip = {
            "x": first["x"],
            "y": first["y"],
            "width": first["width"],
            "height": last["y"] + last["height"] - first["y"],
        }
        await self.page.screenshot(path=path, clip=clip, style=PLAIN)  # type: ignore[arg-type]


@pytest.fixture
async def lab(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Lab]:
    """Open a notebook of ``CELLS``, or of the cells that are the fixture's parameter."""
    sources = getattr(request, "param", CELLS)
    with tempfile.TemporaryDirectory(prefix="bh-") as name:
        root = Path(name)
        for folder in ("run", "config/labconfig", "data", "books", "beside"):
            (root / folder).mkdir(mode=0o700, parents=True)
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(root / "run"))
        monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(root / "config"))
        monkeypatch.setenv("JUPYTER_DATA_DIR", str(root / "data"))
        announcements = {"@jupyterlab/apputils-extension:announcements": True}
        settings = json.dumps({"disabledExtensions": announcements})
        (root / "config/labconfig/page_config.json").write_text(settings)
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in sources],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        nbformat.write(notebook, root / "books/shown.ipynb")
        file = root / "run" / "kernel-training.json"
        options = [*QUIET, f"--ServerApp.root_dir={root / 'books'}"]
        async with (
            Bridge.launch(connection_file=file, cwd=root / "beside") as beside,
            serving("jupyterlab", *options, runtime=str(root / "run")) as url,
            async_playwright() as playwright,
        ):
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            try:
                page = await browser.new_page(
                    viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.5
                )
                page.set_default_timeout(PATIENCE)
                expect.set_options(timeout=PATIENCE)
                asked: list[str] = []

                def note(request: Request) -> None:
                    if not request.url.startswith((url, "data:", "blob:")):
                        asked.append(request.url)

                page.on("request", note)
                await page.goto(f"{url}doc/tree/shown.ipynb?token={TOKEN}")
                await page.locator(".jp-CodeCell").nth(len(sources) - 1).wait_for()
                # If a cell runs before there is a kernel, JupyterLab asks the user for one.
                await page.evaluate(READY)
                yield Lab(page, beside, root / "beside", asked)
            finally:
                (root / "beside" / "go").touch()
                await browser.close()


async def test_a_notebook_reaches_a_second_kernel_and_shows_it(
    lab: Lab, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    await lab.page.locator(".jp-CodeCell .cm-content").first.click()
    await lab.page.keyboard.press("Shift+Enter")
    await lab.output(1).locator("table").wait_for()

    # The push waits for the running cell of the second kernel; its bar is visible meanwhile.
    busy = asyncio.create_task(lab.beside.run(BUSY))
    await lab.command("notebook:run-all-below")
    bar = lab.output(2).locator(".widget-hprogress .progress-bar")
    await bar.wait_for()
    assert not busy.done()
    await expect(lab.output(2).first).to_contain_text("push:")
    assert "progress-bar-success" not in str(await bar.get_attribute("class"))
    (lab.folder / "go").touch()
    await busy

    await lab.output(5).locator("img").wait_for()
    assert "progress-bar-success" in str(await bar.get_attribute("class"))
    await expect(lab.output(2).first).to_contain_text("100%")
    await expect(lab.output(1).first).to_contain_text("SyncBridge")
    await expect(lab.output(1).first).to_contain_text("kernel-training.json")
    await expect(lab.output(2).nth(1).locator("b")).to_have_text("Transfer")
    await expect(lab.output(3).first).to_have_text("Ref figure")
    names = lab.output(4).locator("tbody tr")
    assert [(await row.locator("th").inner_text()) for row in await names.all()] == [
        "figure",
        "walks",
    ]
    await expect(names.last).to_contain_text("4,000,000 × 4")
    width = await lab.output(5).locator("img").evaluate("image => image.naturalWidth")
    assert width > 300
    for number in range(1, len(CELLS) + 1):
        texts = await lab.output(number).all_inner_texts()
        assert not any("Error" in text or "Warning" in text for text in texts), texts
    bad = ".jp-OutputArea-output[data-mime-type$='error'], [data-mime-type$='stderr']"
    assert await lab.page.locator(bad).count() == 0

    for theme in ("Dark", "Light"):
        await lab.theme(theme)
        seen = await lab.page.locator(".jp-OutputArea-output").evaluate_all(CONTRASTS)
        assert {"SyncBridge", "Names", "walks", "Transfer"} <= {text for text, _ in seen}
        assert [(text, ratio) for text, ratio in seen if ratio < 4.5] == []
        await lab.picture(tmp_path / f"{theme}.png")
    assert lab.asked == []
    if request.config.getoption("--write"):
        with Image.open(tmp_path / "Light.png") as taken:  # few colours, and a third of the bytes
            taken.convert("RGB").quantize(96).save(PICTURE, optimize=True)
    assert PICTURE.read_bytes().startswith(b"\x89PNG")
    assert PICTURE.stat().st_size <= MAX_SEND


@pytest.mark.parametrize("lab", [MAGICS], indirect=True)
async def test_magics_and_errors_in_a_notebook(lab: Lab, tmp_path: Path) -> None:
    await lab.page.locator(".jp-CodeCell .cm-content").first.click()
    for number in range(1, len(MAGICS) + 1):
        await lab.page.keyboard.press("Shift+Enter")
        await lab.output(number).first.wait_for()
    await expect(lab.output(2).last).to_contain_text("a: pushed rows: ")
    await expect(lab.output(3).locator("tbody th")).to_have_text(["rows"])
    await expect(lab.output(4)).to_contain_text(["100%|██████████| 100000/100000"])
    both = lab.output(5).first
    for name in ("a", "b"):
        await expect(both).to_contain_text(f"{name} | process ")
    failed = await lab.output(6).first.inner_text()
    own, _, kernels = failed.partition("in the kernel:")
    assert '----> 4 kernel.run("numbers = [1, 2]' in own
    assert "RemoteError: IndexError: list index out of range" in own
    assert "----> 2 numbers[3]" in kernels
    assert "`error.__cause__` is the IndexError." in kernels
    refused = await lab.output(7).first.inner_text()
    assert "----> 3 kernel.push(config={'lock': threading.Lock()})" in refused
    assert "EncodeError: config['lock'] cannot be pickled" in refused
    for text in (failed, refused):
        assert "sync.py" not in text
    assert await lab.page.locator(".jupyter-widgets, .jupyter-widgets-disconnected").count() == 0
    for theme in ("Dark", "Light"):
        await lab.theme(theme)
        await lab.picture(tmp_path / f"{theme}.png")
    assert lab.asked == []
