"""Which signs of life end the time in which a kernel counts as unresponsive."""

from __future__ import annotations

import pytest

from bridgehead import KernelUnresponsive
from bridgehead._transports.state import KernelState
from bridgehead._transports.timings import Timings


@pytest.mark.parametrize("only_beats", [False, True])
def test_a_beat_is_no_sign_of_life_of_a_kernel_that_answers_no_message(only_beats: bool) -> None:
    """J3. A thread without Python answers it: each caller would wait a minute again."""
    life = KernelState(Timings())
    life.note_unresponsive(lambda: KernelUnresponsive("no answer"), only_beats=only_beats)
    life.note_responsive(beat=True)
    assert life.is_unresponsive == only_beats
    life.note_responsive()
    life.check_responsive()
    life.note_unresponsive(lambda: KernelUnresponsive("no beat"))
    life.note_responsive(beat=True)
    life.check_responsive()
