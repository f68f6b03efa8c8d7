"""A small disk of scripts/soak that can be full, and that can fail: ext4 on a loop device over a sparse file in a tmpfs.

It fails for good, without the help of device mapper: the file is cut to nothing, and the tmpfs is filled, so that the loop
device finds no room for what is written, and the kernel sees write errors.
"""

import os
import subprocess


class Disk:
    def __init__(self, folder, mib):
        self.folder, self.mib = folder, mib
        self.below = folder.with_suffix(".below")
        self.image, self.filler = self.below / "image", folder / "filler"
        self.make()

    def make(self):
        for path in (self.folder, self.below):
            path.mkdir(exist_ok=True)
        # Room for the image, and a little that `fail` takes.
        run("mount", "-t", "tmpfs", "-o", f"size={self.mib + 1}m", "tmpfs", self.below)
        with open(self.image, "wb") as image:
            image.truncate(self.mib << 20)
        run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", self.image)
        run("mount", "-o", "loop", self.image, self.folder)

    def fill(self, leave=0):
        """Not a byte is left, nor a block for an inode; or so many MiB."""
        with open(self.filler, "ab", buffering=0) as filler:
            for size in (1 << 20, 4096):
                try:
                    while True:
                        filler.write(bytes(size))
                except OSError:
                    pass
            if leave:
                filler.truncate(filler.tell() - (leave << 20))

    def free(self):
        self.filler.unlink(missing_ok=True)

    def fail(self):
        os.truncate(self.image, 0)
        with open(self.below / "filler", "ab", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(1 << 20))
            except OSError:
                pass

    def failed(self):
        """Has the kernel noticed? What is written there must not come through."""
        try:
            handle = os.open(self.folder / "trial", os.O_WRONLY | os.O_CREAT)
            try:
                os.write(handle, bytes(4096))
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError:
            return True
        return False

    def remove(self):
        """Nobody uses it any more. Never fails."""
        for path in (self.folder, self.below):
            subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL)

    def replace(self):
        """An empty one in its place."""
        self.remove()
        self.make()


def run(*command):
    subprocess.run(command, check=True)
