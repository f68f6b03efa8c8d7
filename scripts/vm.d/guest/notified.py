"""What a service manager is told: every notice at the socket SOCKET is added to the file OUTPUT, until one says that it is READY.

Usage: notified.py SOCKET OUTPUT
"""

import socket
import sys


def main(path, output):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(path)
    notice = ""
    while "READY=1" not in notice.splitlines():
        notice = listener.recv(65536).decode()
        with open(output, "a", encoding="utf-8") as file:
            file.write(notice + "\n")


main(*sys.argv[1:])
