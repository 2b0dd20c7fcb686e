"""A disk that loses its power: what of a recording may be there afterwards.

The model is stricter than the file systems in use, so that what survives it does not hang on one of them. It follows
"All File Systems Are Not Created Equal" (Pillai et al., OSDI 2014), where the parts of each call may reach the disk in
any order, and what SQLite says that it relies on ("Atomic Commit In SQLite", "Powersafe Overwrite"):

- *Data.* Each sector of a file, of 512 or 4,096 bytes, was last written back at some moment since the file's last
  fsync, whatever the others did: it holds what the file held there at that moment. So of one write any subset of
  sectors may be there, of two writes the second without the first.
- *Torn sectors.* Of a write, a sector may have taken the first part only. Bytes that were not written to stay as they
  are (SQLite's "powersafe overwrite", its default on Linux).
- *Sizes* go their own way: the size is that of another moment. Where a file is longer than what was written back, it
  holds zeros, bytes that mean nothing, or blocks of files that were deleted or cut off: an old log, in its old place.
  A truncation is made whole or not at all, as file systems free no block of a file whose size stays; SQLite counts on
  that wherever it ends a log or a journal by cutting it off.
- *Names.* Each name in a folder was last written back at some moment since the folder's last fsync, whatever the
  others did. A name may come back after its deletion; after a rename there may be the old name, the new one, both or
  none; a name may be there before the data of its file.
- *fsync* makes durable what a file held when it was entered, data and size, but not the file's name; of a folder, its
  names, but neither the data of its files nor its own name in the folder above. ext4 and XFS give more: with a new
  file's fsync its name, too. Nothing here may count on that.
- SQLite's -shm file is mapped and never synced. It is lost, or holds bytes that mean nothing.

What it leaves out: a disk that lies about a flush, and damage to what had been synced.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from recording import (
    ROOT,
    Acknowledged,
    Event,
    Names,
    Pending,
    Recording,
    Returned,
    SyncDone,
    SyncStarted,
    Truncate,
    Write,
)

SECTORS = (512, 4_096)
SHARED_MEMORY = "-shm"

Moments = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Survival:
    """How what was not synced fares in one state.

    `data`, `sizes`, `names`: "none", "all", or "any": a moment of its own for each sector, size or name; and for
    `data` "some files": none or all, file by file.
    """

    sector: int
    data: str
    sizes: str
    names: str
    garbage: str
    torn: float

    @classmethod
    def draw(cls, random: np.random.Generator) -> Survival:
        """One of the ways, the extreme ones often: they are what a missing fsync needs in order to show."""
        return cls(
            sector=int(random.choice(SECTORS)),
            data=str(random.choice(["none", "all", "some files", "any"], p=[0.25, 0.15, 0.25, 0.35])),
            sizes=str(random.choice(["none", "all", "any"], p=[0.3, 0.4, 0.3])),
            names=str(random.choice(["none", "all", "any"], p=[0.3, 0.3, 0.4])),
            garbage=str(random.choice(["zeros", "noise", "old blocks"])),
            torn=float(random.choice([0.0, 0.02, 0.2])),
        )


EVERYTHING = Survival(512, "all", "all", "all", "zeros", 0.0)
"""Nothing is lost: what the processes see."""


@dataclass(slots=True)
class _File:
    """What is durable, and the changes since, each with the place of its event."""

    durable: bytearray = field(default_factory=bytearray)
    changes: list[tuple[int, Write | Truncate]] = field(default_factory=list)

    def settle(self, places: Collection[int]) -> None:
        """The changes of these events are durable now."""
        for place, change in self.changes:
            if place in places:
                _apply(self.durable, change)
        self.changes = [change for change in self.changes if change[0] not in places]

    def latest(self) -> bytearray:
        """What a process sees."""
        content = bytearray(self.durable)
        for _, change in self.changes:
            _apply(content, change)
        return content


@dataclass(slots=True)
class _Folder:
    """The names that are durable, and the changes since."""

    durable: dict[str, int] = field(default_factory=dict)
    changes: list[tuple[int, tuple[str, int | None]]] = field(default_factory=list)

    def settle(self, places: Collection[int]) -> None:
        """The changes of these events are durable now."""
        for place, (name, node) in self.changes:
            if place not in places:
                continue
            if node is None:
                self.durable.pop(name, None)
            else:
                self.durable[name] = node
        self.changes = [change for change in self.changes if change[0] not in places]


class Disk:
    """Follows the events of a recording; at any point, states that a power cut may leave."""

    def __init__(self, recording: Recording) -> None:
        self._new_folders = recording.new_folders  # which grows with the events
        self._nodes: dict[int, _File | _Folder] = {
            number: _Folder(dict(names)) for number, names in recording.folders.items()
        }
        self._nodes |= {number: _File(bytearray(content)) for number, content in recording.files.items()}
        self._running: set[int] = set()  # events whose calls have not returned
        self._syncs: dict[int, frozenset[int]] = {}  # call → the events whose changes it makes durable
        self._freed: list[bytes] = []  # what was deleted or cut off lately
        self.acknowledged: int | None = None
        """The last acknowledgement so far."""

    def follow(self, at: int, event: Event) -> None:
        """The next event, which is at this place of the recording."""
        if isinstance(event, Write):
            self._file(event.node).changes.append((at, event))
        elif isinstance(event, Truncate):
            file = self._file(event.node)
            self._free(bytes(file.latest()))
            file.changes.append((at, event))
        elif isinstance(event, Names):
            for folder, name, node in event.changes:
                self._name(at, folder, name, node)
        elif isinstance(event, Pending):
            self._running.add(event.event)
        elif isinstance(event, Returned):
            self._running.discard(event.event)
        elif isinstance(event, SyncStarted):
            # Of another thread's call that has not returned, nothing is durable; of those that it overlaps, all is.
            places = {place for place, _ in self._nodes[event.node].changes}
            self._syncs[event.call] = frozenset(places - self._running)
        elif isinstance(event, SyncDone):
            self._nodes[event.node].settle(self._syncs.pop(event.call))
        elif isinstance(event, Acknowledged):
            self.acknowledged = event.steps

    def lose_power(self, target: Path, survival: Survival, random: np.random.Generator) -> None:
        """Write a state that may be left into an empty folder."""
        self._write_folder(target, self._folder(ROOT), survival, random)

    def _name(self, at: int, folder: int, name: str, node: int | None) -> None:
        parent = self._folder(folder)
        if node is None:
            before = parent.durable.get(name)
            for _, (changed, now) in parent.changes:
                before = now if changed == name else before
            if before is not None and isinstance(gone := self._nodes[before], _File):
                self._free(bytes(gone.latest()))
        elif node not in self._nodes:
            self._nodes[node] = _Folder() if node in self._new_folders else _File()
        parent.changes.append((at, (name, node)))

    def _free(self, content: bytes) -> None:
        if content:
            self._freed = [*self._freed[-3:], content]

    def _file(self, number: int) -> _File:
        node = self._nodes[number]
        if not isinstance(node, _File):
            raise TypeError(f"node {number} is a folder")
        return node

    def _folder(self, number: int) -> _Folder:
        node = self._nodes[number]
        if not isinstance(node, _Folder):
            raise TypeError(f"node {number} is a file")
        return node

    def _write_folder(self, path: Path, folder: _Folder, survival: Survival, random: np.random.Generator) -> None:
        versions: dict[str, list[int | None]] = {name: [node] for name, node in folder.durable.items()}
        for _, (name, node) in folder.changes:
            versions.setdefault(name, [None]).append(node)
        for name, nodes in sorted(versions.items()):
            number = nodes[_moment(survival.names, len(nodes) - 1, random)]
            if number is None:
                continue
            node = self._nodes[number]
            if isinstance(node, _Folder):
                (path / name).mkdir()
                self._write_folder(path / name, node, survival, random)
            elif not name.endswith(SHARED_MEMORY):
                (path / name).write_bytes(self._content(node, survival, random))
            elif random.random() < 0.5:
                (path / name).write_bytes(random.bytes(int(random.integers(0, 70_000))))

    def _content(self, file: _File, survival: Survival, random: np.random.Generator) -> bytes:
        """A file as it may be left: each sector, and the size, of a moment of its own."""
        count = len(file.changes)
        sizes = [len(file.durable)]
        for _, change in file.changes:
            sizes.append(change.size if isinstance(change, Truncate) else max(sizes[-1], _end(change)))
        sized = _moment(survival.sizes, count, random)
        size, most, unit = sizes[sized], max(sizes), survival.sector
        sectors = -(-most // unit)
        data = str(random.choice(["none", "all"])) if survival.data == "some files" else survival.data
        moments = np.full(sectors, 0 if data == "none" else count)
        if data == "any":
            # Most of them the first or the last moment, so that few sectors are left out, or few came through.
            late = float(random.choice([0.03, 0.5, 0.97]))
            moments = np.where(random.random(sectors) < late, count, 0)
            other = random.random(sectors) < random.choice([0.0, 0.3])
            moments = np.where(other, random.integers(0, count + 1, size=sectors), moments)
        torn = random.random(sectors) < survival.torn
        written = np.arange(sectors) < -(-len(file.durable) // unit)
        content = bytearray(file.durable).ljust(sectors * unit, b"\0")
        for number, (_, change) in enumerate(file.changes, start=1):
            if isinstance(change, Truncate):
                if number <= sized:
                    _cut(content, change.size, written, unit)
            else:
                _put(content, change, moments - number, torn, written, unit, random)
        for at in np.flatnonzero(~written[: -(-size // unit)]):
            content[at * unit : (at + 1) * unit] = self._garbage(at * unit, unit, survival.garbage, random)
        return bytes(content[:size])

    def _garbage(self, offset: int, size: int, kind: str, random: np.random.Generator) -> bytes:
        """What is found in a block that the file got but that was never written."""
        if kind == "noise":
            return random.bytes(size)
        if kind == "old blocks" and self._freed:
            old = self._freed[int(random.integers(len(self._freed)))][offset : offset + size]
            return old.ljust(size, b"\0")
        return bytes(size)


def _moment(how: str, count: int, random: np.random.Generator) -> int:
    """After how many of the changes; 0: what was durable."""
    return {"none": 0, "all": count}[how] if how != "any" else int(random.integers(0, count + 1))


def _end(write: Write) -> int:
    return write.offset + len(write.data)


def _apply(content: bytearray, change: Write | Truncate) -> None:
    size = change.size if isinstance(change, Truncate) else change.offset
    if len(content) < size:
        content.extend(bytes(size - len(content)))
    if isinstance(change, Truncate):
        del content[size:]
    else:
        content[change.offset : _end(change)] = change.data


def _cut(content: bytearray, size: int, written: Mask, unit: int) -> None:
    """A truncation: what lies behind the end is gone."""
    for at in range(size // unit, len(written)):
        start = max(size, at * unit)
        content[start : (at + 1) * unit] = bytes((at + 1) * unit - start)
        written[at] = at * unit < size


def _put(
    content: bytearray,
    write: Write,
    since: Moments,
    torn: Mask,
    written: Mask,
    unit: int,
    random: np.random.Generator,
) -> None:
    """A write, in those sectors that took it; `since`: how many changes each sector took after it, below 0 for none.

    A torn sector whose last change this was took the first part of it.
    """
    first, last = write.offset // unit, (_end(write) - 1) // unit
    if (since[first : last + 1] >= torn[first : last + 1]).all():  # every sector took all of it
        content[write.offset : _end(write)] = write.data
        written[first : last + 1] = True
        return
    for at in np.flatnonzero(since[first : last + 1] >= 0) + first:
        start, end = max(write.offset, at * unit), min(_end(write), (at + 1) * unit)
        if torn[at] and since[at] == 0:
            end = start + int(random.integers(0, end - start + 1))
        content[start:end] = write.data[start - write.offset : end - write.offset]
        written[at] = True


def turning_points(events: Sequence[Event]) -> list[int]:
    """Places behind which a cut is likely to show something: acknowledgements, ends of fsyncs, names, truncations."""
    return [at for at, event in enumerate(events) if isinstance(event, Acknowledged | SyncDone | Names | Truncate)]
