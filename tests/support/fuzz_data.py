"""A program that reads hostile streams for some seconds: ``python fuzz_data.py SECONDS SEED FILE``.

Rule: it stops at the first stream that the codec neither refuses nor makes safe, and leaves that
stream in the file. A crash, a hang of 30 s and too much memory end it, too.
"""

from __future__ import annotations

import faulthandler
import itertools
import resource
import sys
import time
import warnings
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

sys.path.insert(0, str(Path(__file__).parent.parent))
from bridgehead._shipped.data import decode_data
from bridgehead._shipped.wire.errors import WireError
from support.streams import STREAMS, use

MEMORY = 6 << 30  # bytes of address space; the libraries take two


def main(seconds: float, first: int, file: Path) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    end = time.monotonic() + seconds
    counts = {"read": 0, "refused": 0}

    def read(raw: bytes) -> None:
        file.write_bytes(raw)
        faulthandler.dump_traceback_later(30, exit=True)
        try:
            value, again = decode_data([raw]), decode_data([raw])
        except WireError:
            counts["refused"] += 1
        else:
            counts["read"] += 1
            use(value, again)
        finally:
            faulthandler.cancel_dump_traceback_later()

    options = settings(
        max_examples=200, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    for number in itertools.count(first):
        if time.monotonic() > end:
            break
        seed(number)(options(given(STREAMS)(read)))()
    print(counts)


if __name__ == "__main__":
    faulthandler.enable()
    main(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
