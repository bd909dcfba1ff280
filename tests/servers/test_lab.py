"""A notebook in a real JupyterLab and a real browser, with a second kernel of another program.

Rule: assertions are about what a person sees, in the light theme and the dark one. The page makes
no request to the network. ``pytest -m servers -k lab --write`` writes the guide's picture,
``lab.png``.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from playwright.async_api import Page, expect

from bridgehead import Bridge
from support.lab import CONTRASTS, NEEDS_CHROMIUM, Lab, make_folders, opened

PICTURE = Path(__file__).with_name("lab.png")
MAX_SEND = 200_000  # bytes of the picture

pytestmark = [pytest.mark.servers, NEEDS_CHROMIUM]

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

IN_BOTH = """\
import sys
import matplotlib.pyplot as plt, pandas as pd
from IPython.display import HTML, JSON, Javascript, Latex, clear_output, display, update_display"""

# Each runs in the notebook's own kernel, and by ``run`` in a trusted and in an untrusted kernel.
SHOWN = {
    "streams": """\
print("out", flush=True)
print("err", file=sys.stderr, flush=True)
print("out again\\x1b[31m red\\x1b[0m", flush=True)
pd.Series([1, 2])""",
    "figures": """\
print("before")
for number in (1, 2):
    plt.figure(figsize=(2, 1))
    plt.plot([1, 3, number])
    plt.show()
print("behind")
figure, axes = plt.subplots(figsize=(3, 1))
figure""",
    "tables": """\
frame = pd.DataFrame({"n": [1, 2], "text": ["a", "<i>b</i>"]})
display(frame)
frame.style.background_gradient(subset="n")""",
    "texts": """\
display(HTML("<b onclick='alert(1)'>bold</b>"), Latex("$x^2$"), JSON({"a": [1]}))
display(Javascript("window.ran = (window.ran || 0) + 1"))""",
    "changes": """\
print("never seen"); clear_output()
display("first", display_id="shown"); update_display(HTML("<u>second</u>"), display_id="shown")""",
}
RESULTS = [
    "from bridgehead import SyncBridge",
    'kernel = SyncBridge.attach("training")',
    'guarded = SyncBridge.attach("training", trust="data")',
    f"code = {IN_BOTH!r}",
    "exec(code)",
    "kernel.run(code)",
]
RESULTS = [
    "\n".join(RESULTS),
    *(
        cell
        for code in SHOWN.values()
        for cell in (code, f"kernel.run({code!r})", f"guarded.run({code!r})")
    ),
]

# What a person sees of each output: its type, its text, and the size of its picture.
LOOKS = """
(outputs) => outputs.map((output) => {
    const image = output.querySelector("img");
    const size = image ? [image.naturalWidth, image.naturalHeight] : [];
    return [output.querySelector("[data-mime-type]")?.dataset.mimeType
        || output.dataset.mimeType, output.innerText, size];
})
"""

# Keeps a kernel busy until the test has checked what the notebook shows meanwhile.
BUSY = """
while not __import__("os").path.exists("go"):
    __import__("time").sleep(0.02)
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


async def picture(page: Page, path: Path) -> None:
    """Write a picture of the cells, from the first to the last, and nothing around them."""
    await page.mouse.move(1, 1)
    cells = page.locator(".jp-CodeCell")
    first, last = await cells.first.bounding_box(), await cells.last.bounding_box()
    assert first is not None
    assert last is not None
    clip = {
        "x": first["x"],
        "y": first["y"],
        "width": first["width"],
        "height": last["y"] + last["height"] - first["y"],
    }
    await page.screenshot(path=path, clip=clip, style=PLAIN)  # type: ignore[arg-type]


@dataclass
class Beside:
    """The second kernel."""

    bridge: Bridge
    folder: Path


@pytest.fixture
async def places(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Lab, Beside]]:
    """Open a notebook of ``CELLS``, or of the cells that are the fixture's parameter."""
    with tempfile.TemporaryDirectory(prefix="bh-") as name:
        root = Path(name)
        make_folders(root, monkeypatch)
        (folder := root / "beside").mkdir()
        file = root / "run" / "kernel-training.json"
        async with (
            Bridge.launch(connection_file=file, cwd=folder) as bridge,
            opened(root, getattr(request, "param", CELLS)) as lab,
        ):
            try:
                yield lab, Beside(bridge, folder)
            finally:
                (folder / "go").touch()


async def test_a_notebook_reaches_a_second_kernel_and_shows_it(
    places: tuple[Lab, Beside], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    lab, beside = places
    await lab.run_cell(1)
    await lab.output(1).locator("table").wait_for()

    # The push waits for the running cell of the second kernel; its bar is visible meanwhile.
    busy = asyncio.create_task(beside.bridge.run(BUSY))
    await lab.command("notebook:run-all-below")
    bar = lab.output(2).locator(".widget-hprogress .progress-bar")
    await bar.wait_for()
    assert not busy.done()
    await expect(lab.output(2).first).to_contain_text("push:")
    assert "progress-bar-success" not in str(await bar.get_attribute("class"))
    (beside.folder / "go").touch()
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
        await picture(lab.page, tmp_path / f"{theme}.png")
    assert lab.asked == []
    if request.config.getoption("--write"):
        with Image.open(tmp_path / "Light.png") as taken:  # few colours, and a third of the bytes
            taken.convert("RGB").quantize(96).save(PICTURE, optimize=True)
    assert PICTURE.read_bytes().startswith(b"\x89PNG")
    assert PICTURE.stat().st_size <= MAX_SEND


@pytest.mark.parametrize("places", [MAGICS], indirect=True)
async def test_magics_and_errors_in_a_notebook(places: tuple[Lab, Beside], tmp_path: Path) -> None:
    lab, _ = places
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
        assert "/_bridge/" not in text
    assert await lab.page.locator(".jupyter-widgets, .jupyter-widgets-disconnected").count() == 0
    for theme in ("Dark", "Light"):
        await lab.theme(theme)
        await picture(lab.page, tmp_path / f"{theme}.png")
    assert lab.asked == []


@pytest.mark.parametrize("places", [RESULTS], indirect=True)
async def test_a_result_shows_what_the_cell_would_have(places: tuple[Lab, Beside]) -> None:
    lab, _ = places
    await lab.page.locator(".jp-CodeCell .cm-content").first.click()
    for number in range(1, len(RESULTS) + 1):
        await lab.page.keyboard.press("Shift+Enter")
        await lab.output(number).first.wait_for()
    seen = [await lab.output(n).evaluate_all(LOOKS) for n in range(1, len(RESULTS) + 1)]
    shown = dict(zip(SHOWN, zip(seen[1::3], seen[2::3], seen[3::3], strict=True), strict=True))
    for name, (own, result, inert) in shown.items():
        assert result == own, name
        if name in ("streams", "figures"):
            assert inert == own
            continue
        assert len(inert) == sum(1 for _, text, _ in own if text) + (name == "texts")
        for kind, text, _ in inert:
            assert kind == "text/plain"
            assert "[not shown, because only data of this kernel is trusted: " in text
    names = [kind.rpartition(".")[2] for kind, _, _ in shown["streams"][1]]
    assert names == ["stdout", "stderr", "stdout", "text/plain"]
    assert [bool(size) for *_, size in shown["figures"][1]] == [0, 1, 1, 0, 1, 1]
    assert [kind for kind, _, _ in shown["tables"][1]] == ["text/html"] * 2
    assert [text for _, text, _ in shown["changes"][1]] == ["second"]
    assert await lab.page.evaluate("window.ran") == 2  # not by the kernel that is not trusted
    assert lab.asked == []
