"""The panel in a real JupyterLab and a real Notebook 7, in headless Chromium.

Rule: the mouse and the keyboard do what a person does; what it did is checked in the kernels. The
page makes no request to the network. ``pytest -m servers -k panel --write`` writes the picture of
the documentation, ``notebooks/panel.png``; with ``-s`` the test of 1,000 names prints how long
sorting and searching took.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Locator, expect

from bridgehead import Bridge, RemoteError
from support.lab import CONTRASTS, LAB, NEEDS_CHROMIUM, NOTEBOOK, Lab, make_folders, opened

PICTURE = Path(__file__).parents[2] / "notebooks" / "panel.png"
MAX_SEND = 200_000  # bytes of the picture
BOTH = pytest.mark.parametrize("shown", [LAB, NOTEBOOK], indirect=True)
IN_LAB = pytest.mark.parametrize("shown", [LAB], indirect=True)

pytestmark = [pytest.mark.servers, NEEDS_CHROMIUM]

CELLS = [
    """\
from bridgehead import SyncBridge, panel

train, score = SyncBridge.attach("train"), SyncBridge.attach("score")
panel(train, score)""",
    "limits = {'rows': 1000, 'seconds': 60}",
    "print('pulled', type(birds).__name__, len(birds), 'watches', train.stats.watches)",
    """\
import os, time
open("begun", "w").close()
while not os.path.exists("go"): time.sleep(0.05)""",
    "own = SyncBridge.launch()\nown['x'] = 1\npanel(own)",
]

NAMES = """
import numpy as np, pandas as pd
rng = np.random.default_rng(7)
kind = rng.choice(["Adelie", "Chinstrap", "Gentoo"], 344)
penguins = pd.DataFrame({"species": kind, "mass": rng.normal(4200, 700, 344).round()})
weights = rng.normal(size=(2000, 64))
y, x = np.mgrid[-1.5:1.5:180j, -2.2:0.8:240j]
c, z, depth = x + 1j * y, 0, np.zeros(x.shape, "uint8")
with np.errstate(all="ignore"):
    for _ in range(24):
        z = z * z + c
        depth += abs(z) < 2
fractal = depth * 10
config = {"layers": [64, 64], "rate": 0.001}
note = "<img src=x onerror='window.hacked = 1'>"
globals()["<b onmouseover='window.hacked = 1'>name</b>"] = 1
big = np.zeros(8_000_000)
del rng, kind, c, z, x, y, depth, _
"""

# A fleet of async bridges, whose loop is the notebook's own. MARK runs a script where it is markup.
MARK = "<img src=x onerror='window.hacked = 1'>"
FLEET_CELLS = [
    f"""\
from bridgehead import Bridge, Fleet, panel

globals()[{MARK!r}] = [{MARK!r}]
fleet = Fleet([await Bridge.attach("train"), await Bridge.attach("score")])
panel(fleet)""",
]
FLEET_NAMES = f"""
import pandas as pd
mark = {MARK!r}
table = pd.DataFrame({{mark: [mark], "b": [1]}}, index=pd.Index([mark], name=mark))
deep = {{mark: [mark], "list": {{mark}}}}
class Refuses:
    def __reduce__(self):
        raise ValueError(mark)
refuses = Refuses()
Refuses.__qualname__ = Refuses.__name__ = mark
big = bytes(300_000_000)
"""

# Note each state of the progress bars: whether it is hidden, its value and its end.
NOTE_BARS = """
() => {
    window.bars = [];
    const jobs = document.querySelector(".bridgehead-panel .jobs");
    const note = () => {
        for (const bar of jobs.querySelectorAll("progress"))
            window.bars.push([bar.hidden, bar.value, bar.max]);
    };
    const what = { subtree: true, childList: true, attributes: true };
    new MutationObserver(note).observe(jobs, what);
}
"""

# Time until the page's next picture, for what a person does in a list of 1,000 names.
MEASURE = """
async () => {
    const panel = document.querySelector(".bridgehead-panel");
    const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    const taken = {};
    const time = async (name, act) => {
        await drawn();
        const began = performance.now();
        act();
        panel.querySelector(".scroll").getBoundingClientRect();  // has the layout computed
        const script = performance.now() - began;
        await drawn();
        taken[name] = [script, performance.now() - began];
    };
    const search = panel.querySelector("input[type=search]");
    for (const text of ["n", "na", "name_9", "name_99", "none", ""])
        await time(`search ${text}`, () => {
            search.value = text;
            search.dispatchEvent(new Event("input"));
        });
    for (const head of panel.querySelectorAll(".heads button"))
        await time(`sort ${head.textContent.slice(0, 5)}`, () => head.click());
    await time("scroll", () => { panel.querySelector(".scroll").scrollTop = 13000; });
    return taken;
}
"""


@dataclass
class Shown:
    """A notebook with a panel of two kernels, and this test's own bridges to them."""

    lab: Lab
    train: Bridge
    score: Bridge

    @property
    def panel(self) -> Locator:
        return self.lab.page.locator(".bridgehead-panel")

    def kernel(self, name: str) -> Locator:
        return self.panel.locator(f"section[aria-label='{name}']")

    def row(self, kernel: str, name: str) -> Locator:
        lines = self.kernel(kernel).locator(".scroll .line")
        return lines.filter(has=self.lab.page.locator(f'span:first-child:text-is("{name}")'))

    def button(self, kernel: str, label: str) -> Locator:
        return self.kernel(kernel).locator(f"button:visible:text-is({label!r})")

    async def job(self, text: str) -> None:
        await expect(self.panel.locator(".job", has_text=text)).to_be_visible()

    async def reload(self) -> None:
        """Load the page again, and wait until it shows the panel."""
        page = self.lab.page
        save = "async () => { await window.jupyterapp.commands.execute('docmanager:save'); }"
        await page.evaluate(save)
        await page.reload()
        await page.wait_for_function("window.jupyterapp?.shell.currentWidget")
        await expect(self.row("train", "penguins")).to_be_visible()

    async def output(self, number: int, text: str) -> None:
        await expect(self.lab.output(number).first).to_contain_text(text)


@asynccontextmanager
async def showing(
    monkeypatch: pytest.MonkeyPatch,
    application: str = LAB,
    cells: list[str] = CELLS,
    names: str = NAMES,
) -> AsyncIterator[Shown]:
    """Show a notebook whose first cell has run, and two kernels; the first one has the names."""
    with tempfile.TemporaryDirectory(prefix="bh-") as name:
        root = Path(name)
        make_folders(root, monkeypatch)
        async with AsyncExitStack() as stack:
            bridges = [
                await stack.enter_async_context(
                    Bridge.launch(connection_file=root / "run" / f"kernel-{kernel}.json")
                )
                for kernel in ("train", "score")
            ]
            await bridges[0].run(names)
            notebook = opened(root, cells, application=application, width=1100, height=1400)
            lab = await stack.enter_async_context(notebook)
            await lab.run_cell(1)
            try:
                yield Shown(lab, *bridges)
            finally:
                (root / "books" / "go").touch()


@pytest.fixture
async def shown(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shown]:
    async with showing(monkeypatch, request.param) as shown:
        await expect(shown.row("train", "penguins")).to_be_visible()
        yield shown


# ------------------------------------------------------------ with the mouse, in both


@BOTH
async def test_names_are_sorted_searched_previewed_moved_and_deleted(
    shown: Shown, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    page, train = shown.lab.page, shown.kernel("train")
    first = train.locator("[aria-rowindex='2']")
    await expect(train.locator(".chip")).to_have_text("idle")
    await expect(train.locator(".facts").first).to_contain_text("MB")
    await expect(train.locator(".facts").first).to_contain_text("direct over ipc")

    await train.locator(".heads button", has_text="Size").click()
    await train.locator(".heads button", has_text="Size").click()
    await expect(first).to_contain_text("big")
    assert await train.locator("[aria-sort=descending]").inner_text() == "Size ▾"
    await train.locator(".heads button", has_text="Name").click()

    await shown.panel.locator("input[type=search]").fill("DATAFRAME")
    await expect(train.locator(".scroll .line")).to_have_count(1)
    await expect(train).to_contain_text("1 of 7 names. Choose one to look at it and to move it.")
    await shown.panel.locator("input[type=search]").fill("")
    await expect(train.locator(".scroll .line")).to_have_count(7)  # drawn with the next picture

    await shown.row("train", "penguins").click()
    await expect(train.locator(".preview th")).to_have_text(["", "species", "mass"])
    await shown.row("train", "weights").click()
    await expect(train.locator(".preview")).to_contain_text("Mean")
    await shown.row("train", "fractal").click()
    await expect(train.locator(".preview img")).to_be_visible()

    await shown.row("train", "note").click()
    await expect(train.locator(".preview pre")).to_contain_text("<img src=x")
    await train.locator(".scroll .line", has_text="<b onmouseover").click()
    await expect(train.locator(".chosen")).to_contain_text("no name that a cell can use")
    assert await shown.panel.locator("section b.name *, .scroll b, img").count() == 0
    assert await page.evaluate("window.hacked") is None

    await shown.row("train", "penguins").click()
    await train.locator(".actions input").fill("birds")
    await expect(train.locator(".actions")).not_to_contain_text("replaces")
    await train.locator(".actions input").fill("get_ipython")
    await expect(train.locator(".actions")).to_contain_text("replaces the notebook's")
    await train.locator(".actions input").fill("birds")
    await shown.button("train", "Pull").click()
    await shown.job("birds is now in the notebook")
    await expect(train.locator(".actions")).to_contain_text("replaces the notebook's")
    await expect(train.locator(".push option", has_text="birds")).to_have_count(1)
    await shown.lab.run_cell(2)
    await shown.lab.run_cell(3)
    await shown.output(3, "pulled DataFrame 344 watches 1")

    await train.locator(".push select").select_option("limits")
    await train.locator(".push input").fill("config")
    await expect(train.locator(".push")).to_contain_text("replaces that of train")
    await shown.button("train", "Push").click()
    await shown.job("config is now in train")
    assert await shown.train.pull("config['rows']") == 1000

    await shown.row("train", "big").click()
    await train.locator(".actions select").select_option(label="score")
    await shown.button("train", "Hand over").click()
    await shown.job("big is now in score: 64 MB in")
    await expect(shown.row("score", "big")).to_be_visible()
    await expect(train.locator(".actions")).to_contain_text("replaces that of score")
    assert await shown.score.pull("big.nbytes") == 64_000_000

    await shown.button("train", "Delete").click()
    await expect(train.locator(".actions")).to_contain_text("Delete big from train?")
    await shown.button("train", "Keep").click()
    assert await shown.train.exists("big")
    await shown.button("train", "Delete").click()
    await train.locator("button.danger:visible").click()
    await shown.job("big was deleted from train")
    await expect(shown.row("train", "big")).to_have_count(0)
    assert not await shown.train.exists("big")

    # Names are kept current as another client runs cells.
    await shown.score.run("metrics = {'loss': 0.25, 'epoch': 3}")
    await expect(shown.row("score", "metrics")).to_contain_text("'loss': 0.25")

    await shown.row("train", "fractal").click()
    await shown.row("score", "metrics").click()
    await expect(train.locator(".preview img")).to_be_visible()
    await expect(shown.kernel("score").locator(".preview td")).to_have_count(4)
    for theme in ("Dark", "Light"):
        await shown.lab.theme(theme)
        await page.mouse.move(1, 1)
        seen = await shown.panel.evaluate_all(CONTRASTS)
        assert {"train", "penguins", "idle", "Interrupt"} <= {text for text, _ in seen}
        assert [(text, ratio) for text, ratio in seen if ratio < 4.5] == []
        await shown.panel.screenshot(path=tmp_path / f"{theme}.png")
    assert shown.lab.asked == []
    if request.config.getoption("--write") and "/doc/tree/" in page.url:  # JupyterLab
        with Image.open(tmp_path / "Light.png") as taken:
            taken.convert("RGB").quantize(256).save(PICTURE, optimize=True)
    assert PICTURE.read_bytes().startswith(b"\x89PNG")
    assert PICTURE.stat().st_size <= MAX_SEND


@BOTH
async def test_a_kernel_is_interrupted_and_restarted(shown: Shown, tmp_path: Path) -> None:
    train = shown.kernel("train")
    cell = asyncio.create_task(shown.train.run("while True: pass"))
    await expect(train.locator(".chip")).to_have_text("busy")
    # What waits behind the cell says so, and can be cancelled.
    await shown.row("train", "penguins").click()
    await shown.button("train", "Pull").click()
    await shown.job("Pull penguins from train: waits for the kernel")
    await shown.panel.screenshot(path=tmp_path / "busy.png")
    await shown.panel.locator(".job button", has_text="Cancel").click()
    await shown.job("Cancelled: Pull penguins from train")
    await shown.button("train", "Interrupt").click()
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        await cell
    await shown.job("train was interrupted")
    await expect(train.locator(".chip")).to_have_text("idle")

    # The notebook attached to this kernel, so it cannot restart it: said before anything is asked.
    await expect(shown.button("train", "Restart")).to_have_attribute("aria-disabled", "true")
    await shown.button("train", "Restart").focus()
    await shown.lab.page.keyboard.press("Enter")
    refused = shown.panel.locator(".note", has_text="cannot restart: this bridge attached")
    await expect(refused).to_contain_text("restart it there, such as in its notebook")
    await expect(train.locator("button.danger:visible")).to_have_count(0)
    await shown.panel.screenshot(path=tmp_path / "refused.png")

    # Its owner restarts it: the panel leaves the report of that to the notebook's next call.
    await shown.train.restart()
    await expect(train.locator(".note")).to_contain_text("restarted by another program")
    await shown.button("train", "Refresh").click()
    await expect(train.locator(".empty")).to_have_text("No names.")
    await shown.train.run("fresh = 1")
    await expect(shown.row("train", "fresh")).to_be_visible()

    # A kernel that the notebook launched is restarted by the button.
    await shown.lab.run_cell(5)
    await expect(shown.row("own", "x")).to_be_visible()
    await shown.button("own", "Restart").click()
    await expect(shown.kernel("own")).to_contain_text("Restart own? All its names are lost.")
    await shown.kernel("own").locator("button.danger:visible").click()
    await shown.job("own was restarted; it has no names")
    await expect(shown.kernel("own").locator(".empty")).to_have_text("No names.")
    await expect(shown.kernel("own").locator(".chip")).to_have_text("idle")


# ------------------------------------------------------------ more, in JupyterLab


@IN_LAB
async def test_the_keyboard_alone_reaches_everything(shown: Shown, tmp_path: Path) -> None:
    page, keys = shown.lab.page, shown.lab.page.keyboard
    focused = page.locator(":focus")
    await shown.panel.locator("input[type=search]").focus()
    await keys.type("penguins")
    for label in ("train", "Interrupt train", "Restart train", "Refresh train"):
        await keys.press("Tab")
        name = await focused.get_attribute("aria-label") or await focused.inner_text()
        assert label in name
    await keys.press("d")  # "d d" on a focused button would delete the notebook's cell
    await keys.press("d")
    for _ in range(6):  # the grid, and its five headers
        await keys.press("Tab")
    await keys.press("Enter")
    await expect(shown.kernel("train").locator("[aria-sort]")).to_have_text("Value ▴")
    for _ in range(5):
        await keys.press("Shift+Tab")
    assert await focused.get_attribute("role") == "grid"
    await keys.press("ArrowDown")
    active = await focused.get_attribute("aria-activedescendant")
    await expect(page.locator(f"#{active}")).to_have_attribute("aria-selected", "true")
    await expect(shown.kernel("train").locator(".preview th").nth(1)).to_have_text("species")
    await shown.panel.screenshot(path=tmp_path / "keyboard.png")
    for _ in range(6):
        await keys.press("Tab")
    assert await focused.inner_text() == "Pull"
    await keys.press("Tab")
    assert await focused.get_attribute("aria-label") == "Name in the notebook"
    await keys.press("ControlOrMeta+a")
    await keys.type("birds")
    await keys.press("Enter")
    await shown.job("birds is now in the notebook")
    await expect(shown.panel.locator("[role=status]")).to_contain_text("birds is now in the")
    await keys.press("Tab")
    assert await focused.inner_text() == "Hand over"
    await keys.press("Enter")
    await shown.job("penguins is now in score")
    await keys.press("Tab")
    await keys.press("Tab")
    assert await focused.inner_text() == "Delete"
    await keys.press("Enter")
    assert await focused.inner_text() == "Keep"
    await keys.press("Escape")
    assert await focused.inner_text() == "Delete"
    await keys.press("Enter")
    await keys.press("Shift+Tab")
    await keys.press("Enter")
    await shown.job("penguins was deleted from train")
    assert await page.locator(".jp-CodeCell").count() == len(CELLS)
    unnamed = "button, input, select, [role=grid], [role=region], [role=group]"
    names = "all => all.map(one => one.ariaLabel || one.labels?.length || one.textContent)"
    assert all(await shown.panel.locator(unnamed).evaluate_all(names))


@IN_LAB
async def test_each_control_has_a_name_that_says_what_it_is_for(shown: Shown) -> None:
    """By the accessible names that Chromium computes, as a screen reader lists them."""
    await shown.score.run("x = 1")
    await shown.lab.run_cell(2)  # with a name of the notebook to push
    await shown.row("train", "penguins").click()
    await shown.row("score", "x").click()
    await expect(shown.kernel("score").locator(".preview pre")).to_have_text("1")
    buttons = shown.panel.get_by_role("button")
    for kernel, name in (("train", "penguins"), ("score", "x")):
        labels = [kernel, f"Interrupt {kernel}", f"Restart {kernel}", f"Refresh {kernel}"]
        labels += [f"Pull {name}", f"Hand over {name}", f"Delete {name}", f"Push to {kernel}"]
        for label in labels:
            await expect(
                shown.panel.get_by_role("button", name=label, exact=True)
            ).to_have_accessible_name(label)
        await expect(shown.kernel(kernel)).to_contain_text("State: idle")
    heads = shown.kernel("train").get_by_role("columnheader")
    for at, head in enumerate(("Name", "Type", "Shape", "Size", "Value")):
        await expect(heads.nth(at)).to_have_accessible_name(head)  # no sign of the order in it
    await expect(heads.first).to_have_attribute("aria-sort", "ascending")
    assert await buttons.count() == 2 * (8 + 5)
    await shown.button("train", "Delete").click()
    asked = shown.panel.get_by_role("group", name="Delete penguins from train?")
    await expect(asked.get_by_role("button")).to_have_text(["Delete", "Keep"])


@IN_LAB
async def test_a_thousand_names_are_sorted_and_searched(shown: Shown, tmp_path: Path) -> None:
    await shown.train.run("%reset -f")
    cell = "for n in range(1000): globals()[f'name_{n}'] = list(range(n % 37))\ndel n"
    await shown.train.run(cell)
    train = shown.kernel("train")
    await expect(train).to_contain_text("1,000 names")
    taken = await shown.lab.page.evaluate(MEASURE)
    print("ms of script and layout, and until the next picture:")
    for name, (script, picture) in taken.items():
        print(f"{name:15} {script:6.1f} {picture:6.1f}")
    assert await train.locator(".scroll .line").count() <= 30  # those in view, and few more
    await shown.panel.screenshot(path=tmp_path / "thousand.png")
    await shown.train.run("name_5 = 'changed'")
    await shown.panel.locator("input[type=search]").fill("name_5")
    await train.locator(".heads button", has_text="Type").click()
    await train.locator(".heads button", has_text="Type").click()
    await expect(train.locator("[aria-rowindex='2']")).to_contain_text("'changed'")


@IN_LAB
async def test_clicks_are_served_in_the_middle_of_a_cell_of_the_notebook(shown: Shown) -> None:
    await shown.lab.run_cell(4)
    await expect(shown.lab.page.locator(".jp-CodeCell").nth(3)).to_contain_text("[*]")
    await shown.row("train", "penguins").click()
    await expect(shown.kernel("train").locator(".preview th").nth(1)).to_have_text("species")
    await shown.button("train", "Hand over").click()
    await shown.job("penguins is now in score")
    await expect(shown.lab.page.locator(".jp-CodeCell").nth(3)).to_contain_text("[*]")
    assert await shown.score.pull("len(penguins)") == 344


@IN_LAB
async def test_dead_kernels_closed_bridges_and_a_restarted_notebook_are_shown(
    shown: Shown, tmp_path: Path
) -> None:
    page = shown.lab.page
    await shown.score.aclose()  # which ends the kernel: this test launched it
    await expect(shown.kernel("score").locator(".chip")).to_have_text("dead")
    await expect(shown.kernel("score")).to_contain_text("No names.")
    await shown.row("train", "penguins").click()
    await shown.button("train", "Hand over").click()
    await shown.job("Hand penguins over from train to score failed. KernelDied")

    # A page that is loaded again shows all again.
    await shown.reload()
    await shown.job("Hand penguins over from train to score failed")
    await shown.panel.screenshot(path=tmp_path / "dead.png")

    await shown.lab.command("kernelmenu:restart")
    await page.locator(".jp-Dialog button", has_text="Restart").click()
    await expect(shown.panel.locator(".note", has_text="disconnected")).to_be_visible()
    await shown.panel.screenshot(path=tmp_path / "disconnected.png")


WATCHES = """
sum(
    len(list(remote.watches.known()))
    for name, module in list(__import__("sys").modules.items())
    if name.startswith("_bridgehead_")
    for remote in module._remotes.values()
)
"""


async def watched(kernel: Bridge, count: int) -> None:
    async with asyncio.timeout(60):
        while await kernel.pull(WATCHES) != count:
            await asyncio.sleep(0.1)


@IN_LAB
async def test_a_page_that_is_silent_is_not_followed_until_it_gives_a_sign(shown: Shown) -> None:
    """A suspended page says nothing for long, and comes back; one that crashed says no "bye"."""
    page = shown.lab.page
    await shown.row("train", "penguins").click()
    await watched(shown.train, 1)
    async with Bridge.attach("shown.ipynb") as notebook:
        lease = "import bridgehead._tools.panel.widget as widget\nwidget.LEASE = {}"
        await notebook.run(lease.format(0.5))  # the page gives a sign every 20 s
        await watched(shown.train, 0)
        await notebook.run(lease.format(150.0))
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        await watched(shown.train, 1)
        await shown.train.run("late = 1")
        await expect(shown.row("train", "late")).to_be_visible()
        await expect(shown.row("train", "penguins")).to_have_attribute("aria-selected", "true")
        await shown.button("train", "Hand over").click()
        await shown.job("penguins is now in score")

        crashed = asyncio.Event()
        page.on("crash", lambda _: crashed.set())
        with contextlib.suppress(PlaywrightError):
            await page.goto("chrome://crash")
        await crashed.wait()
        assert await shown.train.pull(WATCHES) == 1
        await notebook.run(lease.format(0.5))
        await watched(shown.train, 0)
        await watched(shown.score, 0)


@IN_LAB
async def test_the_watches_end_when_the_output_is_cleared(shown: Shown) -> None:
    """The kernels are asked until it is so: the page's "bye" may arrive after its next message."""
    await watched(shown.train, 1)
    await shown.reload()  # the page that was there follows nothing any more
    await watched(shown.train, 1)
    await shown.lab.page.locator(".jp-CodeCell .cm-content").first.click()
    await shown.lab.command("notebook:clear-cell-output")
    await expect(shown.panel).to_have_count(0)
    for kernel in (shown.train, shown.score):
        await watched(kernel, 0)


# ------------------------------------------------------------ a fleet, and what is hostile


async def test_a_fleet_of_async_bridges_shows_hostile_texts_as_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In columns, cells, keys, types, names of the notebook and errors of jobs."""
    first = "fleet[0]"
    async with showing(monkeypatch, LAB, FLEET_CELLS, FLEET_NAMES) as shown:
        page, preview = shown.lab.page, shown.kernel(first).locator(".preview")
        await expect(shown.kernel("fleet[1]").locator(".chip")).to_have_text("idle")
        await shown.row(first, "table").click()
        await expect(preview.locator("th").nth(1)).to_contain_text("<img src=x")
        await expect(preview.locator("td").first).to_contain_text("<img src=x")
        await shown.row(first, "deep").click()
        await expect(preview).to_contain_text("list")
        assert (await preview.inner_text()).count("<img src=x") >= 2
        await expect(shown.row(first, "refuses")).to_contain_text("hacked = 1'>")  # its type
        push = shown.kernel(first).locator(".push")
        assert "hacked" not in await push.inner_text()  # it is no name that a cell can use

        await shown.row(first, "refuses").click()
        await shown.button(first, "Hand over").click()
        await shown.job("ValueError: <img src=x")

        await page.evaluate(NOTE_BARS)
        await shown.row(first, "big").click()
        await shown.button(first, "Hand over").click()
        await shown.job("big is now in fleet[1]: 300 MB in")
        bars = await page.evaluate("window.bars")
        assert [value for hidden, value, most in bars if not hidden and 0 < value < most], bars
        assert bars[-1][0]  # hidden at the end
        assert await shown.score.pull("len(big)") == 300_000_000
        assert await shown.panel.locator("img, .scroll b, .jobs b, .preview b").count() == 0
        assert await page.evaluate("window.hacked") is None
