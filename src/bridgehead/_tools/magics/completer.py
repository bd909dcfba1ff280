"""Completion of ``%bridge`` lines and ``%%bridge`` cells.

Rule: never slow. The kernel gets a fraction of a second to list its names. For a busy kernel, Tab
offers the names of its last answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)
from IPython.core.interactiveshell import InteractiveShell

from bridgehead._bridge.sync import SyncBridge
from bridgehead._errors import BridgeError
from bridgehead._kernels.connection_file import connection_files

TAB_WAIT = 0.25  # s that Tab waits for a kernel's names
PAUSE = 2.0  # s until a busy kernel that didn't answer is asked again
_TYPED = re.compile(r"\s*(%%?)bridge\s+(.*)", re.DOTALL)
_LAST = re.compile(r"[^\s,=]*$")  # the word before the cursor
_NAME = re.compile(r"(?<![\w.])[^\W\d]\w*$")  # the beginning of a name that is no attribute
_IDENTITY = "bridgehead"


@dataclass(frozen=True, slots=True)
class Offer:
    """What may follow a command: its options, and the kind of its words."""

    options: tuple[str, ...]
    kind: str = ""


class Completer:
    """Completes lines; remembers the names that each kernel listed last."""

    def __init__(
        self,
        shell: InteractiveShell,
        bridges: Mapping[str, SyncBridge],
        offers: Mapping[str, Offer],
        chosen: Callable[[str | None], str],
    ) -> None:
        self._shell, self._bridges, self._offers = shell, bridges, offers
        self._chosen = chosen
        self._known: dict[str, tuple[SyncBridge, list[str]]] = {}
        self._again: dict[str, float] = {}  # when a kernel that didn't answer may be asked

    def __call__(self, context: CompletionContext) -> SimpleMatcherResult:
        found = _TYPED.fullmatch(context.text_until_cursor)
        if context.cursor_line > 0 and context.full_text.lstrip().startswith("%%bridge"):
            return self._in_cell(context)
        if found is None:
            return {"completions": [], "suppress": False}
        word = _LAST.search(found[2])
        assert word is not None
        before = found[2][: word.start()].replace("=", " ").split()
        offered = self._words(found[1] == "%%", before, word[0])
        matches = [SimpleCompletion(text) for text in offered if text.startswith(word[0])]
        return {"completions": matches, "suppress": True, "matched_fragment": word[0]}

    def _in_cell(self, context: CompletionContext) -> SimpleMatcherResult:
        """Offer the kernel's names, in addition to IPython's, which knows only this process."""
        name = _NAME.search(context.text_until_cursor)
        head = context.full_text.lstrip().partition("\n")[0].replace("=", " ").split()
        names = self._kernels_names(head) if name is not None else []
        start = "" if name is None else name[0]
        matches = [SimpleCompletion(text) for text in names if text.startswith(start)]
        return {"completions": matches, "suppress": False, "matched_fragment": start}

    def _words(self, cell: bool, before: list[str], word: str) -> Iterable[str]:
        if not cell and not before:
            return [name for name in self._offers if name != "cell"]
        offer = self._offers.get("cell" if cell else before[0], Offer(()))
        if word.startswith("-"):
            return offer.options
        option = before[-1] if before else ""
        if option == "--trust":
            return ("pickle", "data")
        if option == "--kernel":
            return self._of("kernelspecs", before)
        if option == "--on":
            return self._of("bridges", before)
        if cell:
            # The last word of a list is a name too: --push a,b
            option = next((one for one in reversed(before) if one.startswith("-")), "")
            kinds = {"--push": "own names", "--pull": "kernel's names"}
            if before[-1:] and before[-1].endswith(","):
                kinds["--on"] = "bridges"
            return self._of(kinds[option], before) if option in kinds else offer.options
        if option == "as":  # the user invents a name
            return ()
        return self._of(offer.kind, before)

    def _of(self, kind: str, before: list[str]) -> Iterable[str]:
        if kind == "bridges":
            return list(self._bridges)
        if kind == "kernelspecs":
            from jupyter_client.kernelspec import KernelSpecManager

            return sorted(KernelSpecManager().find_kernel_specs())
        if kind == "connection files":
            return [file.name for file in connection_files()]
        if kind == "own names":
            hidden = self._shell.user_ns_hidden
            return [
                name
                for name, value in self._shell.user_ns.items()
                if not name.startswith("_") and hidden.get(name, hidden) is not value
            ]
        return self._kernels_names(before) if kind == "kernel's names" else ()

    def _kernels_names(self, before: list[str]) -> list[str]:
        """Return the kernel's names, or those of its last answer if it doesn't answer now."""
        on = before[before.index("--on") + 1] if "--on" in before[:-1] else None
        try:
            if "--all" in before:
                on = next(iter(self._bridges))
            name = self._chosen(on and on.partition(",")[0])
        except Exception:  # noqa: BLE001 - no bridge is chosen: there is nothing to offer
            return []
        bridge = self._bridges[name]
        known, names = self._known.get(name, (None, []))
        if known is not bridge:
            names = []
        # The state may be out of date, so a busy kernel is asked too, but not for every key.
        if bridge.state == "idle" or time.monotonic() > self._again.get(name, 0.0):
            try:
                names = [one.name for one in bridge.names(timeout=TAB_WAIT)]
            except (BridgeError, TimeoutError):
                self._again[name] = time.monotonic() + PAUSE
                return names
            self._known[name] = bridge, names
        return names


def install(
    shell: InteractiveShell,
    bridges: Mapping[str, SyncBridge],
    offers: Mapping[str, Offer],
    chosen: Callable[[str | None], str],
) -> None:
    """Add the completion of ``%bridge`` to the shell."""
    completer = Completer(shell, bridges, offers, chosen)
    remove(shell)

    @context_matcher(identifier=_IDENTITY)
    def matcher(context: CompletionContext) -> SimpleMatcherResult:
        return completer(context)

    shell.Completer.custom_matchers.append(matcher)


def remove(shell: InteractiveShell) -> None:
    """Remove the completion of ``%bridge`` from the shell."""
    matchers: list[Any] = shell.Completer.custom_matchers
    matchers[:] = [one for one in matchers if getattr(one, "matcher_identifier", "") != _IDENTITY]
