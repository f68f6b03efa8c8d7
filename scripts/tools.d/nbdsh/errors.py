# What a client must not ask for is refused with the right error, and the connection lives on.
# Run by nbdsh with a connected handle `h`.

import errno
import nbd

h.set_strict_mode(0)
end = h.get_size()


def refused(number, what, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum in number, f"{what}: {error}"
    else:
        raise AssertionError(f"{what}: not refused")
    h.pread(512, 0)


beyond_read = {errno.EINVAL}
beyond_write = {errno.ENOSPC, errno.EINVAL}
refused(beyond_read, "read beyond the end", h.pread, 512, end)
refused(beyond_read, "read across the end", h.pread, 1024, end - 512)
refused(beyond_write, "write beyond the end", h.pwrite, bytes(512), end)
refused(beyond_write, "write across the end", h.pwrite, bytes(1024), end - 512)
refused(beyond_write, "zero across the end", h.zero, 1024, end - 512)
refused(beyond_write, "trim across the end", h.trim, 1024, end - 512)
refused(beyond_read, "read far beyond the end", h.pread, 512, 1 << 62)

# An export that does not exist.
stranger = nbd.NBD()
stranger.set_export_name("no such volume")
try:
    if h.get_uri().startswith("nbd+unix:"):
        stranger.connect_unix(h.get_uri().split("socket=")[1])
    else:
        host, port = h.get_uri().split("/")[2].split(":")
        stranger.connect_tcp(host, port)
except nbd.Error as error:
    assert error.errnum in (errno.ENOENT, 0), error
else:
    raise AssertionError("an unknown export was opened")
