"""Hosts that are network namespaces, joined to a bridge: what runs on one reaches the store through a link of its own.

To be used in a network, mount and process namespace that the caller has made for it (`unshare --net --mount-proc --pid --fork --kill-child`): then nothing
of it is seen outside, and all of it is gone with the last process, however that ends.
"""

import os
import subprocess

BRIDGE, STORE, HOST = "store", "10.99.0.1", "10.99.0.{}"
NAMES = "/run/netns"


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def make(count):
    """The bridge, on which a store can listen at STORE, and that many hosts; returns what a command on each begins with."""
    os.makedirs(NAMES, exist_ok=True)
    # The names are ours alone, as the namespaces are.
    subprocess.run(["mount", "-t", "tmpfs", "names", NAMES], check=True)
    ip("link", "set", "lo", "up")
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("addr", "add", f"{STORE}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    return [host(number) for number in range(1, count + 1)]


def host(number):
    name, link = f"host{number}", f"link{number}"
    ip("netns", "add", name)
    ip("link", "add", link, "master", BRIDGE, "type", "veth", "peer", "name", "eth0", "netns", name)
    ip("link", "set", link, "up")
    ip("-n", name, "addr", "add", HOST.format(10 + number) + "/24", "dev", "eth0")
    ip("-n", name, "link", "set", "eth0", "up")
    ip("-n", name, "link", "set", "lo", "up")
    return ["nsenter", f"--net={NAMES}/{name}"]
