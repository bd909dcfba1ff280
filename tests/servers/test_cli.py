"""``ls``, ``doctor`` and completion, for kernels behind servers.

Rule: the installed console script; a server of this file's own.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
import urllib.request
from pathlib import Path

import nbformat
import pytest

from bridgehead import KernelDied, KernelRestarted, RemoteError
from support.cli import Ran, Terminal, bridgehead, bridgehead_process
from support.listing import completed, doctor, listed
from support.servers import GATEWAY, SERVER, TOKEN, behind, on, serving


async def _open_notebook(url: str, path: str, kernel_id: str) -> None:
    """Have the server note that a notebook is open with a kernel, as JupyterLab does."""
    session = {"path": path, "type": "notebook", "name": path, "kernel": {"id": kernel_id}}
    headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{url}api/sessions", json.dumps(session).encode(), headers, method="POST"
    )
    with await asyncio.to_thread(urllib.request.urlopen, request) as reply:
        assert reply.status == 201


@pytest.mark.servers
@pytest.mark.timings(listed_answer=60.0)  # s; a server may be slow on a loaded machine
async def test_kernels_of_servers_are_listed_and_used() -> None:
    with tempfile.TemporaryDirectory(prefix="bh-ls-") as folder:
        async with serving(runtime=folder) as url, on(url) as bridge:
            await bridge.push(n=7)
            found = await asyncio.to_thread(listed, Path(folder))
            (one,) = found.values()
            assert one["state"] == "idle"
            assert one["active"] > 1e9
            assert one["memory"] > 10e6
            assert one["server"].endswith(
                url.rpartition(":")[2]
            )  # the server may name itself localhost
            rows = await asyncio.to_thread(
                lambda: bridgehead("ls", "--url", url, "--token", TOKEN, "--json").json
            )
            (where,) = (each["where"] for each in rows)
            assert where == f"{url}api/kernels/{bridge.info.kernel_id}"
            await _open_notebook(url, "train.ipynb", str(bridge.info.kernel_id))
            table = await asyncio.to_thread(bridgehead, "ls", "--url", url, "--token", TOKEN)
            heads, row = (
                re.split(r"\s{2,}", each.strip()) for each in table.out.splitlines()[:3:2]
            )
            assert heads[-3:-1] == ["used", "for"]
            used, notebook = row[-3:-1]
            assert re.fullmatch(r"\d+ (s|min)", used)
            assert notebook == "train.ipynb"
            for address in (where, url):
                pulled = await asyncio.to_thread(
                    bridgehead, "pull", "n", "--url", address, "--token", TOKEN
                )
                assert (pulled.code, pulled.out) == (0, "7\n"), pulled.err
            # The commands have not ended this kernel, and have started no other.
            assert await bridge.pull("n") == 7
            wrong = await asyncio.to_thread(bridgehead, "ls", "--url", url, "--token", "wrong")
            assert "refuses the token" in wrong.refused(3)


@pytest.mark.servers
async def test_a_kernel_of_a_server_is_interrupted_restarted_and_stopped() -> None:
    async with serving() as url, on(url) as owner:
        address = f"{url}api/kernels/{owner.info.kernel_id}"
        options = ("--url", address, "--token", TOKEN)

        async def command(name: str, *arguments: str) -> Ran:
            return await asyncio.to_thread(bridgehead, name, *(arguments or options))

        messages = owner.messages()
        cell = asyncio.ensure_future(owner.run("print('begun')\nwhile True: pass"))
        while (await anext(messages)).type != "stream":
            pass
        assert (await command("interrupt")).code == 0
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            await cell
        await owner.push(x=1)
        for name in ("stop", "restart"):  # the server has one kernel, but the address names none
            refused = (await command(name, "--url", url, "--token", TOKEN)).refused(3)
            assert "names no kernel" in refused
            assert TOKEN not in refused
        ran = await command("restart")
        assert (ran.code, ran.out) == (0, f"restarted {owner.info.kernel_id}\n"), ran.err
        with pytest.raises(KernelRestarted):
            await owner.exists("x")
        assert not await owner.exists("x")
        ran = await command("stop")
        assert (ran.code, ran.out) == (0, f"stopped {owner.info.kernel_id}\n"), ran.err
        with pytest.raises(KernelDied):
            await owner.exists("x")
        assert "has no kernel" in (await command("stop")).refused(3)
        assert "has no kernel" in (await command("interrupt")).refused(3)


@pytest.mark.servers
async def test_a_kernel_is_started_on_a_server_and_stays() -> None:
    async with serving() as url:

        async def command(*arguments: str) -> Ran:
            return await asyncio.to_thread(bridgehead, *arguments, "--token", TOKEN)

        refused = (await command("run", "-c", "1", "--url", url)).refused(3)
        assert "has no kernel, or lists none; bridgehead start --url ADDRESS starts one" in refused
        ran = await command("ls", "--url", url)
        assert "bridgehead start --url ADDRESS starts one" in ran.err
        ran = await command("start", "--url", url)
        assert ran.out.startswith(f"{url}api/kernels/"), ran.err
        address = ran.out.strip()
        assert "names a kernel" in (await command("start", "--url", address)).refused(2)
        assert (await command("run", "-c", "x = 7", "--url", address)).code == 0
        assert (await command("pull", "x", "--url", url)).out == "7\n"
        missing = await command("start", "missing", "--url", url)
        assert "could not start a kernel named 'missing'" in missing.refused(3)
        assert "--file, --cwd and" in (await command("start", "--url", url, "--cwd", "/")).err
        text = (await command("start", "--url", url, "--start-server")).refused(2)
        assert "--start-server is for a server of a JupyterHub" in text
        assert (await command("stop", "--url", address)).code == 0
        assert (await command("ls", "--url", url, "--json")).json == []


CONTROLS = "a\x1b]0;own\x07\x1b[2J\x1b[31mred\x9b2J\x08\rb\u202e"
OUTPUTS = f"""
import IPython, sys
text = {CONTROLS!r}
print(text)
print(text, file=sys.stderr)
IPython.display.display({{"text/html": "<script>run()</script>", "text/plain": text}}, raw=True)
IPython.display.display({{"text/html" + text: "x"}}, raw=True)
raise type("E" + text, (Exception,), {{}})(text)
"""
# Colours of a traceback, and what a terminal makes of the end of a line, control nothing.
_ALLOWED = re.compile(rb"\r\n|\x1b\[[0-9;]*m|\n|\t")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202e]")


@pytest.mark.servers
async def test_no_output_of_a_kernel_that_is_not_trusted_controls_a_terminal(
    tmp_path: Path,
) -> None:
    """Row M9: streams, displays and the traceback, in a pipe, in a terminal and of a notebook."""
    (tmp_path / "cell.py").write_text(OUTPUTS)
    cells = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(OUTPUTS)])
    nbformat.write(cells, tmp_path / "cells.ipynb")
    async with serving() as url, on(url) as bridge:
        assert bridge.info.trust == "data"
        address = f"{url}api/kernels/{bridge.info.kernel_id}"
        options = ("--url", address, "--token", TOKEN)

        def in_terminal(*arguments: object) -> bytes:
            with Terminal("run", *arguments, *options, columns=200) as terminal:
                assert terminal.end() == 1
            return terminal.raw

        cell = (tmp_path / "cell.py",)
        notebook = (tmp_path / "cells.ipynb", "-o", tmp_path / "out.ipynb")
        piped = await asyncio.to_thread(bridgehead_process, "run", *cell, *options)
        assert piped.code == 1
        for text, html in ((piped.out, True), (piped.err, False)):
            assert not _CONTROL.search(text.replace("\n", ""))
            assert "ared\ufffd2J\ufffd\nb\ufffd\n" in text
            assert ("only data of this kernel is trusted: text/html" in text) is html
        assert "<script>" not in piped.out
        assert "raise type(" in piped.err
        for arguments in (cell, notebook):
            shown = (await asyncio.to_thread(in_terminal, *arguments)).decode()
            rest = _ALLOWED.sub(b"", shown.encode()).decode()
            assert not _CONTROL.search(rest), rest
            assert "raise" in shown
        ran = await asyncio.to_thread(bridgehead_process, "run", *notebook, *options)
        assert ran.code == 1
        assert not _CONTROL.search((ran.out + ran.err).replace("\n", ""))
        assert "raise type(" in ran.err


# ---------------------------------------------------------------- names, for a shell


@pytest.mark.servers
async def test_names_behind_a_server_are_completed_with_the_options_of_the_command() -> None:
    async with serving() as url, on(url) as bridge:
        await bridge.push(alpha=1)
        host = url.partition("://")[2]
        words = ("pull", "--url", host, "--token", TOKEN, "alph")
        assert await asyncio.to_thread(completed, "bash", *words) == ["plain,alpha"]


# ---------------------------------------------------------------- doctor


@pytest.mark.servers
async def test_doctor_says_why_a_kernel_of_a_server_has_no_direct_lane() -> None:
    async with serving() as url, on(url) as bridge:
        address = f"{url}api/kernels/{bridge.info.kernel_id}"
        ran, report = await asyncio.to_thread(doctor, "--url", address, "--token", TOKEN)
        assert (ran.code, report["info"]["lane"]) == (0, "buffers")
        found, trust = report["findings"]
        assert (trust["kind"], report["info"]["trust"]) == ("note", "data")
        assert trust["what"].endswith("machine: the kernel is behind a server")
        assert "'direct'" in found["what"]
        assert "websocket" in found["what"]


@pytest.mark.servers
async def test_doctor_blames_a_gateway_for_lost_buffers() -> None:
    async with serving(GATEWAY) as gateway:
        async with serving(SERVER, *behind(gateway)) as url, on(url) as bridge:
            address = f"{url}api/kernels/{bridge.info.kernel_id}"
            ran, report = await asyncio.to_thread(doctor, "--url", address, "--token", TOKEN)
    assert (ran.code, report["info"]["lane"]) == (0, "inline")
    (found,) = [one["what"] for one in report["findings"] if "binary" in one["what"]]
    host = url.removeprefix("http://").rstrip("/")
    assert re.search(rf"the server at \S*{host}\S*, or a proxy before it, passes no binary", found)
    assert TOKEN not in ran.out
