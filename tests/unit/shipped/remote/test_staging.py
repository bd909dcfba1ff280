"""What is sent for a cell before it, under every Python found here."""

from __future__ import annotations

import pytest

from bridgehead import NotSupported
from support.bare import Space


def test_a_kernel_that_does_not_show_what_a_cell_brings_refuses_it(space: Space) -> None:
    with pytest.raises(NotSupported, match="does not show what the message of a cell has"):
        space.ask("stage", resource="s", owner="o", max_output=10)
