"""Prints one line for each file named in a list: checksum (or target of a link), mode, size, name.

Usage: manifest.py FOLDER LIST

One process for thousands of files, because starting programs is what an emulated machine is slowest at. A file that is
missing or cannot be read is a line too, so that comparing two manifests shows it.
"""

import hashlib
import os
import stat
import sys


def describe(path):
    """What is at `path`, in words that differ when the contents do."""
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return "-> " + os.readlink(path)
        with open(path, "rb") as file:
            checksum = hashlib.md5(file.read(), usedforsecurity=False).hexdigest()
        return f"{checksum} {stat.S_IMODE(status.st_mode):o} {status.st_size}"
    except OSError as error:
        return f"error {error.strerror}"


def main():
    folder, names = sys.argv[1:]
    with open(names, encoding="utf-8", errors="surrogateescape") as file:
        for name in file.read().splitlines():
            print(describe(os.path.join(folder, name)), name)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="surrogateescape")
    main()
