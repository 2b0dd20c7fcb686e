"""How often Python looks for cycles among its objects.

By default it does so for every 700 objects that came without going, and now and then goes through all there are. A
batch of documents is some hundred thousand objects, none of them in a cycle: looking took a quarter of the time of
adding given vectors, and a tenth of that of importing torch.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_OBJECTS = 100_000
_AS_BEGUN = gc.get_threshold()

_lock = threading.Lock()
_inside = 0
_before = (0, 0, 0)


def collect_as_usual() -> None:
    """Look for cycles as Python began with it: for work without end, as what a cycle holds may be large."""
    gc.set_threshold(*_AS_BEGUN)


def collect_rarely() -> None:
    """Look for cycles only for every 100,000 objects, from now on; a process that never does so stays as it is."""
    first, *others = gc.get_threshold()
    if 0 < first < _OBJECTS:
        gc.set_threshold(_OBJECTS, *others)


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """`collect_rarely` inside the block, in whichever threads; what was set before the first one is set after the last.

    It is a setting of the process, which is the caller's.
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = gc.get_threshold()
            collect_rarely()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                gc.set_threshold(*_before)
