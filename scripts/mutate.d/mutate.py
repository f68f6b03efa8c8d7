"""Applies mutations one at a time to a copy of the tree and runs the tests that should catch them; see scripts/mutate."""

import argparse
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import tomllib

GONE, CAUGHT, SURVIVED, BROKEN, UNTRIED = "DOES NOT APPLY", "caught", "SURVIVED", "DOES NOT BUILD", "not tried"
TOO_LONG = "TOO LONG"  # which proves nothing where others want the processor, too


def load(directory):
    mutations = []
    for path in sorted(directory.glob("*.toml")):
        mutation = tomllib.loads(path.read_text())
        unknown = set(mutation) ^ {"why", "file", "old", "new", "test"}
        if unknown:
            sys.exit(f"error: {path} must have why, file, old, new and test; it differs in {sorted(unknown)}")
        mutations.append({"name": path.stem, **mutation})
    return mutations


def applies(tree, mutation):
    """Whether the old text is there, exactly once."""
    path = tree / mutation["file"]
    return path.exists() and path.read_text().count(mutation["old"]) == 1


def copy(repository, tree):
    """Brings the copy up to date; a file that is the same keeps its time, so that it is not built again."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=repository, check=True, capture_output=True, text=True).stdout.split("\0")
    # Not .cargo: the copy lies below the repository, so cargo reads its settings already.
    names = {name for name in names if name and not name.startswith(".cargo/") and (repository / name).is_file()}
    for path in [path for path in tree.rglob("*") if path.is_file()]:
        if str(path.relative_to(tree)) not in names:
            path.unlink()
    for name in names:
        source, path = repository / name, tree / name
        if not path.exists() or path.read_bytes() != source.read_bytes():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read_bytes())
            path.chmod(source.stat().st_mode)


def run(arguments, tree, target, timeout):
    """The end of a cargo test: its status (None: too long) and its output. Whatever it started ends with it."""
    environment = {**os.environ, "CARGO_TARGET_DIR": str(target), "RUST_BACKTRACE": "0"}
    process = subprocess.Popen(
        ["cargo", "test", "--locked", *arguments], cwd=tree, env=environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return None, output


def ran_something(output):
    """Whether a test ran at all: a filter that no name matches any more proves nothing."""
    return any(line.startswith("running ") and not line.startswith("running 0 ") for line in output.splitlines())


def test(mutation, tree, target, timeout):
    words = mutation["test"].split()
    built, output = run([*words, "--no-run"], tree, target, None)
    if built != 0:
        return BROKEN, output
    status, output = run(words, tree, target, timeout)
    return (TOO_LONG if status is None else SURVIVED if status == 0 else CAUGHT), output


def control(commands, tree, target, timeout):
    """Without a mutation every command must pass, and run something: otherwise it would catch anything, or nothing."""
    bad = {}
    for command in commands:
        # Building all that there is takes as long as it takes.
        run([*command.split(), "--no-run"], tree, target, None)
        status, output = run(command.split(), tree, target, timeout)
        if status != 0:
            bad[command] = "takes too long without a mutation" if status is None else "fails without a mutation"
        elif not ran_something(output):
            bad[command] = "runs no test"
        print(f"{'FAILS' if command in bad else 'passes':8} unchanged: {command}", file=sys.stderr, flush=True)
    return bad


class Results:
    """What the last run of each mutation found, for the lines of a table that a run does not try; of the same data only."""

    def __init__(self, path):
        self.path = path
        self.known = json.loads(path.read_text()) if path.exists() else {}

    @staticmethod
    def key(mutation):
        return hashlib.sha256(json.dumps(mutation, sort_keys=True).encode()).hexdigest()

    def set(self, mutation, result):
        self.known[self.key(mutation)] = result
        self.path.write_text(json.dumps(self.known, indent=1))

    def get(self, mutation):
        return self.known.get(self.key(mutation), UNTRIED)


def table(rows):
    lines = [
        "# Mutations",
        "",
        "Each line is a safety argument of the code that was broken on purpose, and what came of it: `scripts/mutate` makes",
        "this table from `scripts/mutate.d/`. A mutation that survives is a rule that no test holds.",
        "",
        "| mutation | file | what it breaks | test | result |",
        "| --- | --- | --- | --- | --- |",
    ]
    for mutation, result in rows:
        name, file, why, command = (mutation[key] for key in ("name", "file", "why", "test"))
        lines.append(f"| {name} | `{file}` | {why} | `{command}` | {result} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(prog="scripts/mutate")
    parser.add_argument("words", nargs="*", help="only mutations whose names contain one of these")
    parser.add_argument("--repository", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help="only whether every mutation applies")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for the tests of one mutation (600)")
    parser.add_argument("--output", type=pathlib.Path, help="write the table here as well")
    options = parser.parse_args()
    known = load(options.repository / "scripts/mutate.d")
    mutations = known
    if options.words:
        mutations = [one for one in known if any(word in one["name"] for word in options.words)]
    if not mutations:
        sys.exit("error: no mutation has such a name")
    if options.check:
        gone = [one for one in mutations if not applies(options.repository, one)]
        for one in gone:
            print(f"{one['name']}: its text is not there, or not once: {one['file']}: {one['old']}", file=sys.stderr)
        sys.exit(1 if gone else 0)
    base = options.repository / "target/mutate"
    tree, target = base / "tree", base / "target"
    copy(options.repository, tree)
    results = Results(base / "results.json")
    bad = control(sorted({one["test"] for one in mutations if applies(tree, one)}), tree, target, options.timeout)
    rows = []
    for one in mutations:
        began = time.monotonic()
        if not applies(tree, one):
            result = GONE
        elif one["test"] in bad:
            result = f"NOT TRIED: its test {bad[one['test']]}"
        else:
            path = tree / one["file"]
            text = path.read_text()
            path.write_text(text.replace(one["old"], one["new"]))
            try:
                result, output = test(one, tree, target, options.timeout)
            finally:
                path.write_text(text)
            (base / f"{one['name']}.log").write_text(output)
        rows.append((one, result))
        results.set(one, result)
        print(f"{result:15} {one['name']} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    if options.output:
        options.output.write_text(table([(one, results.get(one)) for one in known]))
    caught = sum(result == CAUGHT for _, result in rows)
    print(f"{caught} of {len(rows)} mutations were caught")
    sys.exit(0 if caught == len(rows) else 1)


if __name__ == "__main__":
    main()
