"""``doctor``: check a kernel and the connection to it.

Rule: only facts from the handshake or from the connection file. Each finding says what the
problem is and what to do. Where the other commands refuse to connect, ``doctor`` does not connect
either.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from bridgehead._tools.cli.exit import FAILED, UNUSABLE, code_of, fail
from bridgehead._tools.cli.options import as_json, target
from bridgehead._tools.cli.target import Target

if TYPE_CHECKING:
    from bridgehead import Bridge, Info

INSECURE, LACKING, NOTE = "insecure", "lacking", "note"
STYLES = {INSECURE: "bold red", LACKING: "bold yellow", NOTE: "bold"}
WANTED = {"cloudpickle": "functions and classes that it defines", "numpy": "arrays"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about a kernel, and what to do about it.

    Attributes:
        kind: ``"insecure"``, ``"lacking"`` or ``"note"``.
        what: the fact.
        todo: what to do about it.
    """

    kind: str
    what: str
    todo: str


@click.command()
@target()
@as_json
def doctor(target: Target, as_json: bool) -> None:
    """Check a kernel and the connection to it, and say what to do.

    Shows which kernel it is, which lane objects take and why they take no better one, what is
    insecure, and which packages the kernel lacks. The exit code is 1 if anything is insecure.
    If the command can't connect, the exit code says why.
    """
    from bridgehead import BridgeError, InsecureConnection

    findings = _of_the_file(target.existing)
    info, code = None, 0
    try:
        info, more = _run_quietly(_connect(target))
        findings += more
    except (BridgeError, TimeoutError) as error:
        code = code_of(error)
        if not (findings and isinstance(error, InsecureConnection)):  # a finding says so already
            findings.append(Finding(LACKING, str(error), "bridgehead ls lists the kernels"))
    except (ImportError, ValueError) as error:
        fail(str(error), UNUSABLE)
    if any(finding.kind == INSECURE for finding in findings):
        code = code or FAILED
    if as_json:
        fields = asdict(info) if info is not None else None
        click.echo(json.dumps({"info": fields, "findings": [asdict(one) for one in findings]}))
    else:
        _draw(info, findings)
    raise SystemExit(code)


def _run_quietly(work: Any) -> Any:
    """Run a coroutine without warnings; the caller turns its errors into findings."""
    import asyncio
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a readable connection file is a finding already
        return asyncio.run(work)


async def _connect(target: Target) -> tuple[Info, list[Finding]]:
    async with target.open() as bridge:
        return bridge.info, _of_the_kernel(bridge)


def _of_the_file(existing: str | None) -> list[Finding]:
    from bridgehead import KernelNotFound
    from bridgehead._kernels.connection_file import find, read
    from bridgehead._kernels.security import insecurities, is_open_to_users, mode_for_others
    from bridgehead._transports.addresses import is_of_server

    if existing is not None and is_of_server(existing):
        return []
    try:
        file = find(existing)
        info = read(file).info
        found = [
            Finding(INSECURE, f"the connection {why.partition(' (')[0]}", _todo(why, name))
            for name, why in insecurities(info, file).items()
        ]
    except (KernelNotFound, OSError, ValueError, AttributeError):
        return []  # connecting reports it better
    if is_open_to_users(info):
        found.append(
            Finding(
                NOTE,
                "every user of this machine can connect to the kernel's ports on loopback: without "
                "the key in the file they can't run code, but they can read the code and the "
                "outputs of cells; what push and pull carry they can't read",
                "bridgehead start and Bridge.launch take Unix sockets in a private folder if the "
                "kernel supports them; --encryption hides it, too",
            )
        )
    mode = mode_for_others(file)
    if mode is not None:
        found.append(
            Finding(
                INSECURE,
                f"other users of this machine can read {file} (mode {mode:04o}); with its key "
                "they can run code in the kernel as you",
                f"chmod 600 {shlex.quote(file)}; if another user may have read it, start a new "
                "kernel",
            )
        )
    return found


def _todo(why: str, name: str) -> str:
    advice = why.partition(" (")[2].rstrip(")")
    return f"{advice}; --insecure {name} connects anyway"


def _of_the_kernel(bridge: Bridge) -> list[Finding]:
    info = bridge.info
    pip = f"{shlex.quote(info.executable)} -m pip install"
    found = [
        Finding(NOTE, f"objects do not take the lane {lane!r}: {why}", _LANES[lane])
        for lane, why in info.why_not.items()
    ]
    if info.trust == "data":
        found.append(
            Finding(
                NOTE,
                f"of what the kernel sends, only data is opened: {info.why_trust}",
                "--trust pickle, or trust='pickle' in a program, if the kernel is yours",
            )
        )
    for package, what in WANTED.items():
        if not info.versions.get(package):
            found.append(
                Finding(
                    LACKING,
                    f"the kernel has no {package}: {what} can't cross",
                    f"{pip} {package}",
                )
            )
    if "kernel subshells" not in info.features:
        found.append(
            Finding(
                NOTE,
                "the kernel has no subshells: while a cell runs, now=True transfers only names, "
                "and only on the direct lane",
                f"{pip} 'ipykernel>=7'",
            )
        )
    own = sys.version_info[:2]
    if tuple(info.python[:2]) != own:
        kernels = ".".join(map(str, info.python[:2]))
        found.append(
            Finding(
                NOTE,
                f"the kernel has Python {kernels}, this program {own[0]}.{own[1]}: functions and "
                "classes of __main__ can't cross; data can, and objects that both can import",
                f"run this program with Python {kernels}, or send only data",
            )
        )
    return found


_LANES = {
    "direct": "you need to do nothing: objects cross in messages, large ones more slowly",
    "buffers": "you need to do nothing: objects cross as text, which is a third longer",
}


def _draw(info: Any, findings: list[Finding]) -> None:
    from rich.text import Text

    from bridgehead._tools.cli.terminal import (
        console_for,
        new_table,
        plain,
        print_table,
        print_wrapped,
    )

    console = console_for()
    if info is not None:
        table = new_table()
        table.show_header = False
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in _facts(info):
            table.add_row(name, Text(plain(value)))
        print_table(console, "", table)
        console.print()
    for finding in findings:
        console.print(Text(finding.kind, style=STYLES[finding.kind]))
        print_wrapped(console, finding.what)
        print_wrapped(console, f"-> {finding.todo}")
        console.print()
    if not findings:
        print_wrapped(console, "No problems found.")


def _facts(info: Info) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in info.versions.items() if version)
    where = info.connection_file or f"{info.url} kernel {info.kernel_id}"
    return [
        ("kernel", info.kernel),
        ("python", f"{'.'.join(map(str, info.python))}, {info.executable}"),
        ("process", f"pid {info.pid}, in {info.cwd}"),
        ("packages", versions),
        ("transport", info.transport),
        ("lane", info.lane),
        ("trust", f"{info.trust}, because {info.why_trust}"),
        ("where", where),
    ]
