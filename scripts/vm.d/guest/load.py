"""A load of small durable files, and the proof that they are still there after a crash.

Usage: load.py write FOLDER RECORD SEED      writes until the device fails
       load.py verify FOLDER RECORD CERTAIN  compares what is there with the record

The record lies outside of FOLDER's device. Before a file is made or replaced, a line `intent NAME CHECKSUM` is written;
once it is durable (fsync of the file, rename, fsync of the folder), a line `done NAME CHECKSUM`. After a crash a name must
hold what its last `done` said, or what a later `intent` said; a name without a `done` may be anything.

Only the first CERTAIN lines, those that were there when the server was killed, are taken at their word. From then on the
kernel may return success from an fsync that it never did: XFS, for one, sees nothing left to wait for in a folder whose log
write has just failed. A later `done` is no more than an `intent`.

Lines are numbered, so that a record that is itself incomplete is noticed.
"""

import hashlib
import os
import random
import sys
import threading

THREADS = 4
NAMES_PER_THREAD = 60
LARGEST = 128 * 1024


class Record:
    """The lines, appended one at a time by all threads."""

    def __init__(self, path):
        self.lines = len(read_record(path))
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.lock = threading.Lock()

    def add(self, what, name, checksum):
        with self.lock:
            self.lines += 1
            os.write(self.file, f"{self.lines} {what} {name} {checksum}\n".encode())


def read_record(path):
    """All lines as (what, name, checksum), in order."""
    with open(path, encoding="utf-8") as file:
        lines = [line.split() for line in file]
    for number, line in enumerate(lines, start=1):
        if len(line) != 4 or line[0] != str(number):
            sys.exit(f"the record itself is damaged at line {number}: {line}")
    return [tuple(line[1:]) for line in lines]


def checksum_of(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def sync_folder(folder):
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_durably(folder, name, data):
    """The way a careful program saves a file."""
    temporary = os.path.join(folder, name + ".new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view):]
        os.fsync(handle)
    finally:
        os.close(handle)
    os.rename(temporary, os.path.join(folder, name))
    sync_folder(folder)


def write_until_failure(folder, record, seed):
    """One thread: makes and replaces files of its own names until the device fails."""
    choose = random.Random(seed)
    os.makedirs(folder, exist_ok=True)
    sync_folder(os.path.dirname(folder))
    while True:
        name = str(choose.randrange(NAMES_PER_THREAD))
        data = os.urandom(choose.choice([choose.randrange(1, 4096), choose.randrange(1, LARGEST)]))
        path = os.path.join(os.path.basename(folder), name)
        record.add("intent", path, checksum_of(data))
        replace_durably(folder, name, data)
        record.add("done", path, checksum_of(data))


def until_device_fails(*arguments):
    try:
        write_until_failure(*arguments)
    except OSError as error:
        print("the device is gone:", error.strerror)


def write(folder, record_path, seed):
    record = Record(record_path)
    threads = [
        threading.Thread(target=until_device_fails, args=(os.path.join(folder, f"{n}"), record, f"{seed}/{n}"))
        for n in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def accepted_contents(record, certain):
    """For each name with a certain `done`: the checksums that it may have now."""
    accepted = {}
    pending = {}
    for number, (what, name, checksum) in enumerate(record, start=1):
        if what == "forget":
            accepted.pop(name, None)
        elif what == "done" and number <= certain:
            accepted[name] = {checksum}
            pending[name] = set()
        else:
            pending.setdefault(name, set()).add(checksum)
    return {name: checksums | pending[name] for name, checksums in accepted.items()}


def found_at(path):
    try:
        with open(path, "rb") as file:
            return checksum_of(file.read())
    except OSError as error:
        return error.strerror.replace(" ", "-")


def verify(folder, record_path, certain):
    record = read_record(record_path)
    accepted = accepted_contents(record, int(certain))
    found = {name: found_at(os.path.join(folder, name)) for name in accepted}
    wrong = [name for name in accepted if found[name] not in accepted[name]]
    for name in wrong:
        print(f"{name}: found {found[name]}, accepted {sorted(accepted[name])}; of {certain} certain lines, its own:")
        print(*(line for line in enumerate(record, start=1) if line[1][1] == name), sep="\n")
    print(f"{len(accepted)} fsync'ed files compared, {len(wrong)} wrong")
    if wrong or not accepted:
        sys.exit(1)
    # The next round starts from what was found, and from nothing for names whose every `done` came too late.
    settled = Record(record_path)
    for name in sorted({name for _, name, _ in record}):
        if name in found:
            settled.add("done", name, found[name])
        else:
            settled.add("forget", name, "-")


if __name__ == "__main__":
    {"write": write, "verify": verify}[sys.argv[1]](*sys.argv[2:])
