"""Prints a page of docs/guide as a script for bash: its commands in their order, as somebody gives them who reads it.

    guide.py PLACE PAGE

Each block of commands follows a comment that says where it is run:

    <!-- run: PLACE -->                     here, one after the other; what fails ends the script
    <!-- run: PLACE, until: COMMAND -->     in a terminal of its own; the reader goes on once COMMAND succeeds
    <!-- run: PLACE, kill: COMMAND -->      the same, until the reader sees `listening`; and then it is killed
    <!-- run: not; WHY -->                  nowhere
    <!-- stop: WORDS -->                    Ctrl-C in the terminal of the command that begins so

Blocks of other places are passed over.
"""

import re
import shlex
import sys

BLOCK = re.compile(r"<!-- run: (?P<place>\w+)(?:, (?P<how>until|kill): (?P<what>[^\n]*?))?(?:; [^\n]*)? -->\n```sh\n(?P<commands>.*?)```|<!-- stop: (?P<stop>[^\n]*) -->", re.S)

PROLOGUE = r"""
set -euo pipefail
declare -A terminals
trap 'for pid in "${terminals[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done' EXIT
within() {
    local deadline=$((SECONDS + 300))
    until (eval "$1") >/dev/null 2>&1; do
        if ((SECONDS >= deadline)); then echo "not within 300 s: $1"; tail -n 20 /tmp/terminal.*; exit 1; fi
        sleep 0.3
    done
}
terminal() {
    echo "\$ $1   (in a terminal of its own)"
    number=$((${number:-0} + 1))
    # The program itself, not a shell around it, gets the signal.
    (eval "exec $1") >"/tmp/terminal.$number" 2>&1 &
    terminals[$1]=$!
}
stop() {
    local command
    for command in "${!terminals[@]}"; do
        [[ $command == "$1"* ]] || continue
        echo "\$ ^C   ($command)"
        kill -TERM "${terminals[$command]}" 2>/dev/null || true
        wait "${terminals[$command]}" || true
        unset "terminals[$command]"
    done
}
"""


def main():
    place, page = sys.argv[1:]
    with open(page, encoding="utf-8") as file:
        text = file.read()
    print(PROLOGUE)
    for block in BLOCK.finditer(text):
        if block["stop"]:
            print(f"stop {shlex.quote(block['stop'])}")
        elif block["place"] == place:
            commands = block["commands"].strip()
            if block["how"] is None:
                print(f"set -x\n{commands}\n{{ set +x; }} 2>/dev/null")
            else:
                print(f"terminal {shlex.quote(commands)}")
                if block["how"] == "until":
                    print(f"within {shlex.quote(block['what'])}")
                else:
                    print("within 'grep -q listening /tmp/terminal.'$number")
                    print(f"kill -KILL \"${{terminals[{shlex.quote(commands)}]}}\"; wait \"${{terminals[{shlex.quote(commands)}]}}\" || true")
                    print(f"unset 'terminals[{commands}]'")


main()
