"""What a directory store held after each slot of its log (docs/format.md), for scripts/vm and scripts/soak.

Usage: slots.py keep STORE               from now on nothing can be deleted from the logs of the volumes of STORE (as root)
       slots.py release STORE            it can again
       slots.py last STORE               prints the number of the last slot that is taken
       slots.py pick STORE FROM COUNT    prints COUNT slots from FROM to the last, evenly; all of them if there are fewer
       slots.py cut STORE SLOT TARGET    makes TARGET the store as it was after SLOT: what came later is left out

Whoever would copy what a server is about to delete may come late. So its folders are made ones that can only be added to
(chattr +a): the server is refused, says so, and goes on. `pick` proves that every slot of the log is there, up to where the
uploads were that a killed server had under way: those land in any order. Objects are never overwritten, so that a hard link
is a copy.
"""

import os
import pathlib
import re
import subprocess
import sys

# How many uploads of a volume are under way at once (`volume.upload_window`, its default).
UNDER_WAY = 8

# <folder>/segments/<xx>/<seq> and <folder>/checkpoints/<seq>, at the first place or a later one.
NUMBERED = re.compile(r"/(segments/[0-9a-f]{2}|checkpoints)/([0-9a-f]{16})(?:\.[1-7])?$")


def objects(store):
    """All paths of objects, relative to the store."""
    for folder, folders, names in os.walk(store):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.relpath(os.path.join(folder, name), store) for name in names)


def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def log_folders(store):
    """Those of each volume: the folder with its uuid is there when the volume is, or else made by the first object."""
    for meta in pathlib.Path(store).glob("*/meta/*"):
        uuid = re.search(rb'"uuid": *"([0-9a-f]{8})', meta.read_bytes())[1].decode()
        folder = meta.parent.parent / uuid
        yield folder / "checkpoints"
        yield from (folder / "segments" / f"{low:02x}" for low in range(256))


def keep(store):
    folders = list(log_folders(store))
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["chattr", "+a", *folders], check=True)


def release(store):
    folders = [folder for folder in log_folders(store) if folder.exists()]
    subprocess.run(["chattr", "-a", *folders], check=True)


def numbered(store, kind):
    """The numbers of a kind of object: `segments` or `checkpoints`."""
    found = (NUMBERED.search(path) for path in objects(store))
    return {int(match[2], 16) for match in found if match and match[1].startswith(kind)}


def pick(store, first, count):
    taken = numbered(store, "segments")
    last = next(slot for slot in range(1, max(taken) + 2) if slot + 1 not in taken)
    if last + UNDER_WAY < max(taken):
        sys.exit(f"slot {last + 1} of the log is not there although nothing could be deleted and slot {max(taken)} is")
    slots = range(first, last + 1)
    count = min(count, len(slots))
    return sorted({slots[(len(slots) - 1) * number // max(1, count - 1)] for number in range(count)})


def cut(store, slot, target):
    for path in objects(store):
        match = NUMBERED.search(path)
        if not match or int(match[2], 16) <= slot:
            link(pathlib.Path(store, path), pathlib.Path(target, path))


def main():
    command, *rest = sys.argv[1:]
    match command:
        case "keep":
            keep(*rest)
        case "release":
            release(*rest)
        case "last":
            print(max(numbered(rest[0], "segments")))
        case "pick":
            print(*pick(rest[0], int(rest[1]), int(rest[2])))
        case "cut":
            cut(rest[0], int(rest[1]), rest[2])
        case _:
            sys.exit(__doc__)


main()
