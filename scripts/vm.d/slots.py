"""What a directory store held after each slot of its log (docs/format.md), for scripts/vm and scripts/soak.

Usage: slots.py keep STORE KEPT          hard-links every object of STORE into KEPT, as it comes, until ended
       slots.py last STORE               prints the number of the last slot that is taken
       slots.py pick KEPT FROM COUNT     prints COUNT slots from FROM to the last, evenly; all of them if there are fewer
       slots.py cut KEPT SLOT TARGET     makes TARGET the store as it was after SLOT: what came later is left out

Objects are never overwritten, so that a hard link is a copy. What the server deletes stays in KEPT; `pick` proves that
nothing was missed, since the log has every slot.
"""

import os
import pathlib
import re
import signal
import sys
import time

PAUSE = 0.2
# <folder>/segments/<xx>/<seq> and <folder>/checkpoints/<seq>, at the first place or a later one.
NUMBERED = re.compile(r"/(segments/[0-9a-f]{2}|checkpoints)/([0-9a-f]{16})(?:\.[1-7])?$")


def objects(store):
    """All paths of objects, relative to the store."""
    for folder, folders, names in os.walk(store):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.relpath(os.path.join(folder, name), store) for name in names)


def link(source, target):
    """True unless the source is gone already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except FileNotFoundError:
        return False
    return True


class Keeper:
    """Looks only into folders that have changed since it looked last."""

    def __init__(self, store, kept):
        self.store, self.kept = pathlib.Path(store), pathlib.Path(kept)
        self.seen = {}

    def look(self, folder):
        try:
            changed = os.stat(folder).st_mtime_ns
            if self.seen.get(folder) != changed:
                with os.scandir(folder) as entries:
                    entries = list(entries)
                # A change within the clock's step of the last one would not show: such a folder is looked into again.
                if time.time_ns() - changed > 1_000_000_000:
                    self.seen[folder] = changed
                self.folders[folder] = [entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
                for entry in entries:
                    if entry.is_file():
                        link(entry.path, self.kept / os.path.relpath(entry.path, self.store))
        except FileNotFoundError:
            return
        for below in self.folders.get(folder, []):
            self.look(below)

    def run(self):
        self.folders, ended = {}, []
        signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
        self.kept.mkdir(exist_ok=True)
        while True:
            last = bool(ended)
            self.look(str(self.store))
            if last:
                return
            time.sleep(PAUSE)


def numbered(store, kind):
    """The numbers of a kind of object: `segments` or `checkpoints`."""
    found = (NUMBERED.search(path) for path in objects(store))
    return {int(match[2], 16) for match in found if match and match[1].startswith(kind)}


def pick(kept, first, count):
    slots = numbered(kept, "segments")
    missing = sorted(set(range(1, max(slots) + 1)) - slots)
    if missing:
        sys.exit(f"{len(missing)} slots of the log were deleted before they were kept, the first is {missing[0]}")
    slots = range(first, max(slots) + 1)
    count = min(count, len(slots))
    return sorted({slots[(len(slots) - 1) * number // max(1, count - 1)] for number in range(count)})


def cut(kept, slot, target):
    for path in objects(kept):
        match = NUMBERED.search(path)
        if not match or int(match[2], 16) <= slot:
            link(pathlib.Path(kept, path), pathlib.Path(target, path))


def main():
    command, *rest = sys.argv[1:]
    match command:
        case "keep":
            Keeper(*rest).run()
        case "last":
            print(max(numbered(rest[0], "segments")))
        case "pick":
            print(*pick(rest[0], int(rest[1]), int(rest[2])))
        case "cut":
            cut(rest[0], int(rest[1]), rest[2])
        case _:
            sys.exit(__doc__)


main()
