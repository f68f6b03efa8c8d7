"""The checks of scripts/hosts: see there."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

program, words = sys.argv[1], sys.argv[2:]
here = Path(__file__).parent
work = Path(tempfile.mkdtemp(prefix="ashlar-hosts."))
SERVER, FIRST, SECOND = (f"ashlar-{os.getpid()}-{name}" for name in ("server", "first", "second"))

# The defaults of nbd.client_timeout and nbd.attach_wait, and what a loaded machine may take beside them, in seconds.
CLIENT_TIMEOUT, ATTACH_WAIT, SLACK = 45, 15, 15


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=work).stdout


def on(namespace, *command):
    return ["ip", "netns", "exec", namespace, *command]


def link(namespace, number):
    """10.77.NUMBER.1 is the server's end of a link, .2 the client's, which is called link0 there."""
    ours, address = f"to{number}", f"10.77.{number}"
    run("ip", "-n", SERVER, "link", "add", ours, "type", "veth", "peer", "name", "link0", "netns", namespace)
    for space, device, end in ((SERVER, ours, 1), (namespace, "link0", 2)):
        run("ip", "-n", space, "addr", "add", f"{address}.{end}/24", "dev", device)
        run("ip", "-n", space, "link", "set", device, "up")


def set_link(state):
    run("ip", "-n", FIRST, "link", "set", "link0", state)


def client(namespace, number, manner):
    command = on(namespace, sys.executable, str(here / "client.py"), f"nbd://10.77.{number}.1/disk0", manner)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def ashlar(*arguments):
    return run(program, *arguments)


def clients():
    return json.loads(ashlar("status", "--json"))["clients"]


def log():
    return (work / "log").read_text()


def wait_until(limit, what):
    deadline = time.monotonic() + limit
    while not what():
        assert time.monotonic() < deadline, f"not within {limit} s"
        time.sleep(0.1)


class Attached:
    """A client on the first host that has the volume; in the end its link is mended and the server rid of it."""

    def __init__(self, manner):
        self.manner = manner

    def __enter__(self):
        self.process = client(FIRST, 1, self.manner)
        assert self.process.stdout.readline() == "attached\n", self.process.stderr.read()
        return self

    def reads(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline() == "read\n"

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        set_link("up")
        for left in clients():
            ashlar("evict", left["export"], left["address"])
        wait_until(30, lambda: not clients())


def second_attaches():
    """One try from the second host: how many seconds it took, and the words of the refusal, if it was one."""
    begin = time.monotonic()
    process = client(SECOND, 2, "once")
    out, err = process.communicate(timeout=300)
    seconds = time.monotonic() - begin
    return seconds, None if process.returncode == 0 and out == "attached\n" else err.strip()


def check_alive_client_keeps_its_volume():
    with Attached("idle") as first:
        assert [client["address"].split(":")[0] for client in clients()] == ["10.77.1.2"], clients()
        for _ in range(3):
            seconds, refusal = second_attaches()
            assert refusal and "server policy prevents" in refusal, refusal
            assert ATTACH_WAIT <= seconds < ATTACH_WAIT + SLACK, seconds
            assert first.reads()
        line = next(line for line in log().splitlines() if "refused a client: another host is attached" in line)
        assert "WARN" in line and "10.77.2.2:" in line and "10.77.1.2:" in line, line
        # Longer than a host may be silent: it is not, as its kernel answers.
        time.sleep(CLIENT_TIMEOUT + SLACK)
        assert first.reads()


def check_dead_client_makes_room_when_a_second_host_asks():
    with Attached("idle"):
        set_link("down")
        seconds, refusal = second_attaches()
        assert refusal is None, refusal
        return f"after {seconds:.1f} s"


def check_dead_client_makes_room_although_nobody_asks():
    with Attached("idle"):
        set_link("down")
        begin = time.monotonic()
        wait_until(60 + SLACK, lambda: not clients())
        return f"after {time.monotonic() - begin:.1f} s"


def check_dead_client_with_replies_under_way_makes_room():
    with Attached("busy"):
        set_link("down")
        begin = time.monotonic()
        wait_until(CLIENT_TIMEOUT + SLACK, lambda: not clients())
        return f"after {time.monotonic() - begin:.1f} s"


def check_evicting_a_dead_client_makes_room_at_once():
    with Attached("idle"):
        set_link("down")
        assert ashlar("evict", "disk0", "10.77.1.2").startswith("evicted 10.77.1.2:")
        seconds, refusal = second_attaches()
        assert refusal is None and seconds < ATTACH_WAIT, (seconds, refusal)
        return f"after {seconds:.1f} s"


def main():
    checks = [(name[6:], check) for name, check in globals().items() if name.startswith("check_")]
    wanted = [(name, check) for name, check in checks if not words or any(word in name for word in words)]
    failed, server = 0, None
    for name in (SERVER, FIRST, SECOND):
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    try:
        link(FIRST, 1)
        link(SECOND, 2)
        ashlar("create", "disk0", "--size", "64M")
        command = on(SERVER, program, "serve", "--listen", "0.0.0.0:10809", "--socket", "none")
        with open(work / "log", "w") as out:
            server = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=work)
        wait_until(60, lambda: "listening on" in log())
        for name, check in wanted:
            try:
                print(f"ok   {name} {check() or ''}", flush=True)
            except (AssertionError, StopIteration, subprocess.SubprocessError) as error:
                failed += 1
                print(f"FAIL {name}: {error!r}\n{log()[-3000:]}", flush=True)
        server.terminate()
        assert server.wait(120) == 0, "the server did not end well"
    finally:
        if server and server.poll() is None:
            server.kill()
        for name in (SERVER, FIRST, SECOND):
            subprocess.run(["ip", "netns", "del", name], check=False)
        if not failed:
            shutil.rmtree(work)
    print(f"{len(wanted) - failed} passed, {failed} failed" + (f"; the log is in {work}" if failed else ""))
    return 1 if failed else 0


sys.exit(main())
