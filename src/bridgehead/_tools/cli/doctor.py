"""``doctor``: what is known of a kernel and of the way to it, and what to do about it.

Rule: facts that the handshake or the connection file told; each finding says what is the
matter and what to do. What a command would refuse to connect to isn't connected to here either.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridgehead._tools.cli.exit import FAILED, UNUSABLE, code_of, fail
from bridgehead._tools.cli.options import as_json, target
from bridgehead._tools.cli.target import Target

if TYPE_CHECKING:
    from bridgehead import Bridge, Info

INSECURE, LACKING, NOTE = "insecure", "lacking", "note"
STYLES = {INSECURE: "bold red", LACKING: "bold yellow", NOTE: "bold"}
WANTED = {"cloudpickle": "functions and classes come back as pickles", "numpy": "arrays"}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know, and to do.

    Attributes:
        kind: ``"insecure"``, ``"lacking"`` or ``"note"``.
        what: the matter.
        todo: what to do about it.
    """

    kind: str
    what: str
    todo: str


@click.command()
@target()
@as_json
def doctor(target: Target, as_json: bool) -> None:
    """Say what is known of a kernel and the way to it, and what to do.

    Who it is, which lane objects take and why not a better one, what would let a stranger in,
    and what is missing over there. Exit code 1 if anything is insecure, or the code of what
    kept it from connecting.
    """
    from bridgehead import BridgeError, InsecureConnection

    findings = _of_the_file(target.existing)
    info, code = None, 0
    try:
        info, more = _quietly(_greet(target))
        findings += more
    except (BridgeError, TimeoutError) as error:
        code = code_of(error)
        if not (findings and isinstance(error, InsecureConnection)):  # which they say already
            findings.append(Finding(LACKING, str(error), "bridgehead ls shows what there is"))
    except (ImportError, ValueError) as error:
        fail(str(error), UNUSABLE)
    if any(finding.kind == INSECURE for finding in findings):
        code = code or FAILED
    if as_json:
        told = asdict(info) if info is not None else None
        click.echo(json.dumps({"info": told, "findings": [asdict(one) for one in findings]}))
    else:
        _draw(info, findings)
    raise SystemExit(code)


def _quietly(work: Any) -> Any:
    """Its errors are findings here."""
    import asyncio
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an open connection file is a finding already
        return asyncio.run(work)


async def _greet(target: Target) -> tuple[Info, list[Finding]]:
    async with target.open() as bridge:
        return bridge.info, _of_the_kernel(bridge)


def _of_the_file(existing: str | None) -> list[Finding]:
    from bridgehead import KernelNotFound
    from bridgehead._kernels.local import find
    from bridgehead._kernels.security import insecurities, mode_for_others

    if existing is not None and existing.startswith(("http://", "https://")):
        return []
    try:
        file = find(existing)
        info = json.loads(Path(file).read_text("utf-8"))
        found = [
            Finding(INSECURE, f"the connection {why.partition(' (')[0]}", _todo(why, name))
            for name, why in insecurities(info, file).items()
        ]
    except (KernelNotFound, OSError, ValueError, AttributeError):
        return []  # connecting says it better
    mode = mode_for_others(file)
    if mode is not None:
        found.append(
            Finding(
                INSECURE,
                f"others on this machine can read {file} (mode {mode:04o}), and with the key in "
                "it run code in the kernel as you",
                f"chmod 600 {shlex.quote(file)}, and start the kernel anew if somebody may have "
                "read it",
            )
        )
    return found


def _todo(why: str, name: str) -> str:
    advice = why.partition(" (")[2].rstrip(")")
    return f"{advice}; --insecure {name} connects all the same"


def _of_the_kernel(bridge: Bridge) -> list[Finding]:
    info = bridge.info
    pip = f"{shlex.quote(info.executable)} -m pip install"
    found = [
        Finding(NOTE, f"objects do not take the lane {lane!r}: {why}", _LANES[lane])
        for lane, why in info.why_not.items()
    ]
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
                "the kernel has no subshells: in the middle of a cell, now=True brings names on "
                "the direct lane, and nothing else",
                f"{pip} 'ipykernel>=7'",
            )
        )
    here = sys.version_info[:2]
    if tuple(info.python[:2]) != here:
        there = ".".join(map(str, info.python[:2]))
        found.append(
            Finding(
                NOTE,
                f"the kernel has Python {there}, and this is {here[0]}.{here[1]}: functions and "
                "classes of __main__ can't cross, data and what both can import does",
                f"run this with Python {there}, or keep to data",
            )
        )
    return found


_LANES = {
    "direct": "nothing needs to be done: they cross in messages, large ones more slowly",
    "buffers": "nothing needs to be done: they cross as text, which is a third longer",
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
        print_wrapped(console, "Nothing is insecure, nothing is lacking.")


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
        ("trust", info.trust),
        ("where", where),
    ]
