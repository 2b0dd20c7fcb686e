"""What a process does to the files under a folder, in order, as strace sees it: the events that `disk.py` replays.

strace is below every library, so that SQLite, FAISS and numpy are seen alike. A call that changes files in a way that
is not known here is an error, never passed over; so is a file that is mapped for writing, SQLite's -shm file apart,
which no recovery reads.

A change may take effect from the moment when its call is entered, so its event stands there. What an fsync makes
durable are the changes whose calls had returned when the fsync was entered, and they are durable when it returns: that
matters for calls of two threads that overlap, which strace shows as "unfinished" and "resumed". A line of the process
that says "ack N" is an acknowledgement when its call is entered, the earliest that anybody could have read it.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TRACED = (
    "open,openat,openat2,creat,close,dup,dup2,dup3,fcntl,lseek,write,pwrite64,writev,pwritev,pwritev2,ftruncate,"
    "truncate,fallocate,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,mkdir,"
    "mkdirat,fsync,fdatasync,sync,syncfs,msync,sync_file_range,sendfile,copy_file_range,splice,mmap,fork,vfork,"
    "clone,clone3"
)

ROOT = 0
"""The number of the folder that was recorded. Files and folders are numbered as they are made."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes into a file."""

    node: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file is cut off, or made longer by zeros."""

    node: int
    size: int


@dataclass(frozen=True, slots=True)
class Names:
    """Names that now lead to a node, or with `None` to nothing: (folder, name, node). A rename changes two."""

    changes: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Pending:
    """The event at this place has taken effect, but its call has not returned yet."""

    event: int


@dataclass(frozen=True, slots=True)
class Returned:
    """The call of a `Pending` event has returned."""

    event: int


@dataclass(frozen=True, slots=True)
class SyncStarted:
    """An fsync of a file or folder was entered."""

    node: int
    call: int


@dataclass(frozen=True, slots=True)
class SyncDone:
    """It returned without an error."""

    node: int
    call: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The process has said that so many steps are done; 0: that the index is open."""

    steps: int


Event = Write | Truncate | Names | Pending | Returned | SyncStarted | SyncDone | Acknowledged


@dataclass(slots=True)
class Recording:
    """Events, and what was there before them: the names in each folder, and the content of each file."""

    folders: dict[int, dict[str, int]] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)
    new_folders: set[int] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)


@dataclass(slots=True)
class _Description:
    """What a file descriptor leads to."""

    node: int
    writes_at: int | None
    """The position of the next `write`; `None` where it is not followed, because the file may be read as well."""


@dataclass(frozen=True, slots=True)
class _Call:
    """A system call: its name, arguments and result, and the numbers of the lines where it began and ended."""

    thread: int
    name: str
    arguments: str
    result: int
    began: int
    ended: int


class Recorder:
    """Runs processes one after the other and records what they do under one folder."""

    def __init__(self, root: Path) -> None:
        """`root` may hold files, which count as durable."""
        self.root = root.resolve()
        self.recording = Recording()
        self._nodes: dict[str, int] = {}  # path → node, as the processes see them
        self._opening: dict[int, _Description] = {}  # by the call that opens or duplicates
        self._next = ROOT
        self._scan(self.root)

    def run(self, command: Sequence[str], *, environment: Mapping[str, str], codes: Sequence[int] = (0,)) -> None:
        """Run a command to its end. Raises `RuntimeError` where its exit code is none of `codes`."""
        with tempfile.TemporaryDirectory(prefix="strace") as folder:
            log = Path(folder) / "log"
            strace = ["strace", "-f", "-y", "-xx", "-s", "33554432", "--seccomp-bpf", "-o", str(log)]
            traced = ["-e", f"trace={TRACED}", "-e", "signal=none"]
            done = subprocess.run(
                [*strace, *traced, "--", *command],
                env=dict(environment),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode not in codes:
                raise RuntimeError(f"{command} ended with code {done.returncode}: {done.stderr[-2000:]}")
            self._read(log)

    def _scan(self, folder: Path) -> None:
        self._nodes[str(folder)] = number = self._new()
        names: dict[str, int] = {}
        self.recording.folders[number] = names
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                names[path.name] = self._next
                self._scan(path)
            else:
                names[path.name] = self._nodes[str(path)] = file = self._new()
                self.recording.files[file] = path.read_bytes()

    def _new(self) -> int:
        self._next += 1
        return self._next - 1

    def _read(self, log: Path) -> None:
        """Turn one process's log into events, each where its call began, or for an fsync where it ended too."""
        calls = list(_calls(log))
        threads = _threads(calls)
        overlapping = {call.began for call in calls if call.ended != call.began}
        descriptions: dict[int, _Description] = {}
        moments = [(call.began, False, call) for call in calls]
        moments += [(call.ended, True, call) for call in calls if call.began in overlapping]
        events = self.recording.events
        began: dict[int, tuple[int, int]] = {}  # of overlapping calls: where their events start and end
        for _, ends, call in sorted(moments, key=lambda moment: moment[:2]):
            if call.thread not in threads:
                self._check_stranger(call)
            elif ends:
                events += [Returned(at) for at in range(*began[call.began])]
                events += self._end(call, descriptions)
            else:
                first = len(events)
                events += self._begin(call, descriptions)
                if call.began in overlapping:
                    began[call.began] = (first, len(events))
                    events += [Pending(at) for at in range(first, len(events))]
                else:
                    events += self._end(call, descriptions)

    def _begin(self, call: _Call, descriptions: dict[int, _Description]) -> list[Event]:
        """The events of a call when it is entered. Calls that fail change nothing."""
        name, arguments, result = call.name, call.arguments, call.result
        if name in ("write", "writev") and arguments.startswith("1<"):
            said = b"".join(_strings(arguments))
            return [Acknowledged(int(said[4:]))] if said.startswith(b"ack ") else []
        if result < 0:
            return []
        if name in ("open", "openat", "creat"):
            return self._open(call)
        if name == "close":
            descriptions.pop(_descriptor(arguments), None)
        elif name in ("dup", "dup2", "dup3") or (name == "fcntl" and "F_DUPFD" in arguments):
            if (known := descriptions.get(_descriptor(arguments))) is not None:
                self._opening[call.began] = known
        elif name == "lseek":
            if (known := descriptions.get(_descriptor(arguments))) is not None and known.writes_at is not None:
                known.writes_at = result
        elif name in ("mkdir", "mkdirat") and (path := self._path(arguments)) is not None:
            self._nodes[path] = number = self._new()
            self.recording.new_folders.add(number)
            return [self._named(path, number)]
        elif name in ("unlink", "unlinkat", "rmdir") and (path := self._path(arguments)) is not None:
            del self._nodes[path]
            return [self._named(path, None)]
        elif name in ("rename", "renameat", "renameat2") and self._concerns(call):
            return [self._rename(arguments)]
        elif name in ("fsync", "fdatasync") and self._concerns(call):
            return [SyncStarted(self._known(call, descriptions).node, call.began)]
        elif name in ("write", "pwrite64", "writev") and self._concerns(call):
            return [self._write(call, self._known(call, descriptions))]
        elif name == "ftruncate" and self._concerns(call):
            return [Truncate(self._known(call, descriptions).node, int(arguments.rsplit(", ", 1)[1]))]
        elif name == "mmap" and "PROT_WRITE" in arguments and "MAP_SHARED" in arguments and self._concerns(call):
            if not _path_of_descriptor(arguments.split(", ")[4]).endswith("-shm"):
                raise RuntimeError(f"a file is mapped for writing: {call}")
        elif name not in ("fcntl", "mmap", "clone", "clone3", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir"):
            self._check_stranger(call)
        return []

    def _end(self, call: _Call, descriptions: dict[int, _Description]) -> list[Event]:
        """The events of a call when it returns. Only now is a new descriptor's number no longer another's."""
        if (opened := self._opening.pop(call.began, None)) is not None:
            descriptions[call.result] = opened
        if call.name not in ("fsync", "fdatasync") or call.result < 0:
            return []
        started = next(
            (
                event
                for event in reversed(self.recording.events)
                if isinstance(event, SyncStarted) and event.call == call.began
            ),
            None,
        )
        return [SyncDone(started.node, started.call)] if started is not None else []

    def _open(self, call: _Call) -> list[Event]:
        path = self._path(call.arguments)
        if path is None:
            return []
        creates = call.name == "creat" or "O_CREAT" in call.arguments
        events: list[Event] = []
        node = self._nodes.get(path)
        if node is None:
            if not creates:
                raise RuntimeError(f"a file was opened that nobody made: {call}")
            self._nodes[path] = node = self._new()
            events.append(self._named(path, node))
        elif call.name == "creat" or "O_TRUNC" in call.arguments:
            events.append(Truncate(node, 0))
        if "O_APPEND" in call.arguments:
            raise RuntimeError(f"appending is not known here: {call}")
        self._opening[call.began] = _Description(node, 0 if "O_WRONLY" in call.arguments else None)
        return events

    def _write(self, call: _Call, known: _Description) -> Write:
        data = b"".join(_strings(call.arguments))[: call.result]
        if len(data) != call.result:
            raise RuntimeError(f"strace shows {len(data)} of the {call.result} bytes that were written")
        if call.name == "pwrite64":
            return Write(known.node, int(call.arguments.rsplit(", ", 1)[1]), data)
        if known.writes_at is None:
            raise RuntimeError(f"written at a position that is not known: {call.name}({call.arguments[:200]}")
        known.writes_at += len(data)
        return Write(known.node, known.writes_at - len(data), data)

    def _rename(self, arguments: str) -> Names:
        old, new = (self._inside(os.fsdecode(name)) for name in _strings(arguments))
        if old is None or new is None:
            raise RuntimeError(f"renamed into or out of the folder: {arguments}")
        node = self._nodes.pop(old)
        if node in self.recording.new_folders or node in self.recording.folders:
            raise RuntimeError(f"renaming a folder is not known here: {old}")
        self._nodes[new] = node
        return Names((*self._named(old, None).changes, *self._named(new, node).changes))

    def _named(self, path: str, node: int | None) -> Names:
        folder, name = os.path.split(path)
        return Names(((self._nodes[folder], name, node),))

    def _known(self, call: _Call, descriptions: dict[int, _Description]) -> _Description:
        known = descriptions.get(_descriptor(call.arguments))
        if known is None:
            raise RuntimeError(f"a descriptor is used that nobody opened: {call.name}({call.arguments[:200]}")
        return known

    def _path(self, arguments: str) -> str | None:
        """The absolute path of a call's first string, where it lies in the folder."""
        return self._inside(os.fsdecode(_strings(arguments)[0]))

    def _inside(self, path: str) -> str | None:
        if not os.path.isabs(path):
            return None  # the processes are given absolute paths
        path = os.path.normpath(path)
        return path if path == str(self.root) or path.startswith(f"{self.root}/") else None

    def _concerns(self, call: _Call) -> bool:
        """Does it name something in the folder, by path or descriptor?"""
        return _hex(str(self.root)) in call.arguments

    def _check_stranger(self, call: _Call) -> None:
        harmless = ("open", "openat", "close", "mmap", "fcntl", "lseek")
        if call.result >= 0 and self._concerns(call) and call.name not in harmless:
            raise RuntimeError(f"{call.name} on a file of the folder is not known here: {call.arguments[:500]}")


def _calls(log: Path) -> Iterator[_Call]:
    """The calls in a log, in the order in which they ended."""
    unfinished: dict[int, tuple[int, str]] = {}
    with log.open(encoding="ascii") as lines:
        for number, line in enumerate(lines):
            thread, _, text = line.rstrip("\n").partition(" ")
            text = text.lstrip()
            if text.startswith(("+++", "---")):
                continue
            began = number
            if text.endswith("<unfinished ...>"):
                unfinished[int(thread)] = (number, text.removesuffix("<unfinished ...>").rstrip())
                continue
            if text.startswith("<... "):
                began, start = unfinished.pop(int(thread))
                text = start + text[text.index(" resumed>") + len(" resumed>") :]
            match = re.match(r"(\w+)\((.*)\)\s+= (-?\d+|\?|0x[0-9a-f]+)", text)
            if match is None:
                raise RuntimeError(f"strace said something that is not understood: {text[:500]}")
            result = -1 if match[3] == "?" else int(match[3], 0)
            yield _Call(int(thread), match[1], match[2], result, began, number)


def _threads(calls: Sequence[_Call]) -> set[int]:
    """The threads of the process: the one of the first line, and those that they made."""
    threads = {min(calls, key=lambda call: call.began).thread}
    return threads | {call.result for call in calls if "CLONE_THREAD" in call.arguments}


def _strings(arguments: str) -> list[bytes]:
    """The strings of a call, whole."""
    if '"...' in arguments:
        raise RuntimeError("strace cut a string off")
    return [bytes.fromhex(text.replace("\\x", "")) for text in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', arguments)]


def _descriptor(arguments: str) -> int:
    match = re.match(r"\d+", arguments)
    return int(match[0]) if match else -1


def _path_of_descriptor(argument: str) -> str:
    match = re.search(r"<((?:\\x[0-9a-f]{2})*)>", argument)
    return os.fsdecode(bytes.fromhex(match[1].replace("\\x", ""))) if match else ""


def _hex(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(text))
