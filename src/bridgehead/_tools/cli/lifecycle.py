"""``start``, ``stop``, ``restart`` and ``interrupt``: the life of a kernel.

Rule: no handshake, because a kernel that runs a cell would answer after it. ``stop`` and
``restart`` lose what is in a kernel, so they never take the kernel used last: only kernels that
``start`` left running, or one of a server that the address names.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridgehead._tools.cli.exit import finish, not_sent, with_wait_notice
from bridgehead._tools.cli.options import as_json, insecure, target, token
from bridgehead._tools.cli.target import OPENING, Target, address_of, within

if TYPE_CHECKING:
    from bridgehead._transports.rest import Rest


# ---------------------------------------------------------------- start


@click.command()
@click.argument("kernel", required=False)
@click.option(
    "--file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Where to write the connection file. ls, and stop without --existing, know only a "
    "kernel-*.json in Jupyter's runtime folder. [default: a new one there]",
)
@click.option(
    "--cwd",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False),
    help="The kernel's working folder. [default: the current folder]",
)
@click.option("--encryption", is_flag=True, help="Use TCP with CURVE, in place of Unix sockets.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=OPENING,
    show_default=True,
    help="The kernel must answer within this time.",
)
@click.option(
    "--url", metavar="ADDRESS", help="Start it on this Jupyter server, which chooses its folder."
)
@token
@click.option(
    "--start-server",
    is_flag=True,
    help="With --url of a JupyterHub's server: start the server if it does not run.",
)
@insecure
@as_json
def start(
    kernel: str | None,
    file: str | None,
    cwd: str | None,
    encryption: bool,
    timeout: float,
    url: str | None,
    token: str | None,
    start_server: bool,
    insecure: tuple[str, ...],
    as_json: bool,
) -> None:
    """Start a kernel that stays, and print its connection file.

    KERNEL is an installed kernelspec, as jupyter kernelspec list shows it; by default python3, or
    what the server takes. The kernel runs until bridgehead stop ends it, or quit() in a cell does.
    Programs and consoles connect to it by the file. A private folder beside the file has a record
    of the kernel, and kernel.log with what the kernel prints outside of cells.

    With --url, the kernel is one of that server, and its address is printed.
    """
    address = address_of(None, url, token)
    if address is not None:
        if file is not None or cwd is not None or encryption:
            raise click.UsageError("--file, --cwd and --encryption are for a kernel without --url")
        options = (kernel, start_server, frozenset(insecure), timeout)
        where = finish(with_wait_notice(_start_on_server(address, *options)))
        click.echo(json.dumps({"url": where}) if as_json else where)
        return
    if start_server or insecure:
        raise click.UsageError("--start-server and --insecure are for a kernel of a --url")
    from bridgehead._kernels import started_kernels

    connection_file, pid = finish(
        with_wait_notice(
            started_kernels.start(
                kernel or "python3",
                connection_file=file,
                cwd=cwd,
                encryption=encryption,
                timeout=timeout,
            )
        )
    )
    if as_json:
        click.echo(json.dumps({"connection_file": connection_file, "pid": pid}))
    else:
        click.echo(connection_file)


async def _start_on_server(
    address: str, kernel: str | None, start_server: bool, insecure: frozenset[str], timeout: float
) -> str:
    from bridgehead._kernels import jupyter_servers

    with not_sent():
        return await jupyter_servers.start(
            address,
            kernel_name=kernel,
            start_server=start_server,
            insecure=insecure,
            timeout=timeout,
        )


# ---------------------------------------------------------------- stop and restart


@click.command()
@target(trust=False, latest=False)
def stop(target: Target) -> None:
    """End a kernel that bridgehead start started, or one of a server.

    The kernel gets a request; after some seconds, it is killed. What is in it is lost. Kernels
    of other programs and notebooks are refused: their owners end them.
    """
    finish(_stop(target))


async def _stop(target: Target) -> None:
    from bridgehead._kernels import started_kernels

    async with within(target.timeout, lambda: "the kernel may still run"):
        if target.of_server:
            async with _of_server(target) as (rest, identity):
                await rest.end(identity)
            click.echo(f"stopped {identity}")
            return
        kernel = started_kernels.started(target.existing)
        await with_wait_notice(started_kernels.stop(kernel))
    click.echo(f"stopped {Path(kernel.file).name}, pid {kernel.process.pid}")


@click.command()
@target(trust=False, latest=False)
def restart(target: Target) -> None:
    """Replace the process of a kernel that bridgehead start started, or of one of a server.

    The kernel is chosen as by stop. Its names are lost. Its connection file stays, so clients
    stay connected. The new process has the environment of this command. It starts also if this
    command ends before, at Ctrl-C or after --timeout.
    """
    finish(_restart(target))


async def _restart(target: Target) -> None:
    from bridgehead._kernels import started_kernels

    async with within(target.timeout, lambda: "the kernel may be starting"):
        if target.of_server:
            async with _of_server(target) as (rest, identity):
                await with_wait_notice(rest.ask_kernel(identity, "restart", OPENING))
            click.echo(f"restarted {identity}")
            return
        kernel = started_kernels.started(target.existing)
        pid = await with_wait_notice(
            started_kernels.restart(kernel, max(OPENING, target.timeout or 0))
        )
    click.echo(f"restarted {Path(kernel.file).name}, pid {pid}")


@asynccontextmanager
async def _of_server(target: Target) -> AsyncIterator[tuple[Rest, str]]:
    from bridgehead._kernels.jupyter_servers import addressed

    address, insecure = str(target.existing), frozenset(target.insecure)
    async with AsyncExitStack() as stack:
        with not_sent():
            found = await stack.enter_async_context(addressed(address, insecure=insecure))
        yield found


# ---------------------------------------------------------------- interrupt


@click.command()
@target(trust=False)
def interrupt(target: Target) -> None:
    """Interrupt the cell that a kernel runs; an idle kernel ignores it.

    The cell of any client is interrupted, and raises KeyboardInterrupt. run interrupts its own
    cell at Ctrl-C.
    """
    finish(_interrupt(target))


async def _interrupt(target: Target) -> None:
    from bridgehead import NotSupported

    async with target.reach() as transport:
        if not transport.quirks.interruptible:
            name = transport.kernel_info.get("implementation")
            raise NotSupported(f"{name} can't be interrupted: a signal would end it")
        await transport.interrupt()
        await transport.dispatcher.wake()  # a cell that awaits ends when the kernel's loop turns
