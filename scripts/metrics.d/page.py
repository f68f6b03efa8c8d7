#!/usr/bin/env python3
"""Looks at the page of a server in a real browser, as scripts/metrics has it done.

    page.py check URL SHOTS STATUS…   the page is whole, by every test below; STATUS… is the command that prints `status --json`
    page.py watched URL TOKEN PID SHOTS
                                      the page is there for who knows the token as a password, and for nobody else; it says that
                                      the server no longer answers, once its process is killed

The browser is Chromium, driven by chromedriver over the WebDriver protocol: HTTP and JSON, which Python has. SHOTS is a folder for
screenshots. The first thing that is wrong ends it, with a sentence.
"""

import base64
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

# Far longer than anything may take, so that a run ends.
TOO_LONG = 120
DESKTOP, PHONE = (1280, 1000, 1, False), (390, 844, 3, True)


class Browser:
    """One headless Chromium with one page."""

    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}"
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]}
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        until("chromedriver listens", lambda: self.send("GET", "/status")["ready"])
        session = self.send("POST", "/session", {"capabilities": capabilities})
        self.base += "/session/" + session["sessionId"]

    def send(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TOO_LONG) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"the browser: {json.load(error)['value']['message']}") from None

    def open(self, url):
        self.send("POST", "/url", {"url": url})

    def run(self, script, *args):
        return self.send("POST", "/execute/sync", {"script": script, "args": list(args)})

    def devtools(self, command, **params):
        return self.send("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def look(self, size, scheme):
        width, height, scale, mobile = size
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def shoot(self, path):
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))

    def keys(self, *keys):
        presses = [press for key in keys for press in ({"type": "keyDown", "value": key}, {"type": "keyUp", "value": key})]
        self.send("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": presses}]})

    def complaints(self):
        return [entry["message"] for entry in self.send("POST", "/se/log", {"type": "browser"})]

    def close(self):
        self.send("DELETE", "")


@contextlib.contextmanager
def browser():
    """A browser that is gone afterwards, and its driver too."""
    port = free_port()
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        page = Browser(port)
        try:
            yield page
        finally:
            page.close()
    finally:
        driver.terminate()
        driver.wait()


def free_port():
    import socket
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def until(what, is_so, within=TOO_LONG):
    end, last = time.monotonic() + within, None
    while time.monotonic() < end:
        try:
            last = is_so()
            if last:
                return last
        except (OSError, KeyError, IndexError, TypeError) as error:
            last = error
        time.sleep(0.2)
    raise SystemExit(f"within {within} s it did not happen that {what}: {last}")


def need(is_so, sentence):
    if not is_so:
        raise SystemExit(sentence)


def is_size(text, bytes_):
    """Whether that is how a size is said for people: three digits or four, one decimal, a unit."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    number, _, unit = text.partition(" ")
    if unit not in units or float(number) >= 1024.05:
        return False
    scale = 1024 ** units.index(unit)
    decimals = re.fullmatch(r"\d+" if unit == "B" else r"\d+\.\d", number)
    return bool(decimals) and abs(float(number) - bytes_ / scale) < 0.0501 and (unit == "B" or bytes_ >= scale)


def at(document, path):
    for part in re.findall(r"[^.\[\]]+", path):
        document = document[int(part)] if part.isdigit() else document[part]
    return document


def numbers_are_those_of(page, status_command):
    """Every number on the page that stands in the status is what the command says at that time, and is shown as people read it."""
    page.run("const which = document.getElementById('which'); which.value = which.options[1].value; which.dispatchEvent(new Event('change'))")
    marked = "return [...document.querySelectorAll('[data-path]')].map(e => [e.dataset.path, e.dataset.value, e.textContent])"

    def all_equal():
        ask = lambda: json.loads(subprocess.run(status_command, check=True, capture_output=True, text=True).stdout)
        before, shown, after = ask(), page.run(marked), ask()
        for path, value, _ in shown:
            # What changes between the two looks is looked at again.
            said = [at(before, path), at(after, path)]
            # Whoever read a fraction and wrote it again may have its last digit otherwise.
            equal = lambda one: one is None if value == "null" else one is not None and math.isclose(float(value), one, rel_tol=1e-12)
            if not any(equal(one) for one in said):
                raise KeyError(f"{path} is {value} on the page, and {said} in the status")
        return shown, after

    shown, status = until("the page has the numbers of status --json", all_equal)
    need(len(shown) >= 45, f"only {len(shown)} numbers are on the page")
    texts = {path: text for path, _, text in shown}
    for path, value, text in shown:
        if path.endswith("_dollars"):
            need(re.fullmatch(r"\$0|\$\d+\.\d{2}|\$0\.\d{6}", text), f"{path} is shown as {text}")
        elif value == "null":
            need(text == "–", f"{path} is not known and shown as {text}")
        elif not is_size(text, float(value)):
            need(text.replace("\u202f", "") == value, f"{path} is {value} and shown as {text}")
    for field in ["size", "mapped_bytes", "stored_bytes", "live_bytes", "dirty_bytes", "operations[0].requests", "cost.storage_month_dollars"]:
        need(f"volumes[0].{field}" in texts, f"volumes[0].{field} is not on the page")
    need(status["volumes"][0]["stored_bytes"] > 1024, "nothing is stored, so the numbers say little")
    text = page.run("return document.body.innerText")
    for word in [status["store"], status["store_health"][1:], "disk0", str(status["pid"])]:
        need(word in text, f"{word!r} is not on the page")
    print(f"{len(shown)} numbers are those of status --json")


def plots_move(page):
    """There is a curve in each plot, and the newest sample is another one after a while."""
    newest = "return history.samples.length ? history.samples.at(-1).unix_millis : 0"
    first = until("there is a sample", lambda: page.run(newest))
    until("a newer sample came", lambda: page.run(newest) > first)
    curves = page.run("return [...document.querySelectorAll('.plot')].map(p => [...p.querySelectorAll('.curve')].filter(c => c.getAttribute('d').includes('L')).length)")
    need(len(curves) == 6 and all(curves), f"the curves of the plots: {curves}")
    most = page.run("return Math.max(...history.samples.map(s => s.all[history.volume.written_bytes_per_second]))")
    need(most > 0, "what was written is in no sample")


def works_without_a_mouse(page):
    """Tab reaches all that can be used, and arrows read a plot moment by moment."""
    reached = []
    page.run("document.activeElement.blur()")
    for _ in range(20):
        page.keys("\ue004")
        reached.append(page.run("const e = document.activeElement; return e.className || e.id || e.tagName"))
        if reached[-1] == "BODY":
            break
    need({"skip", "which", "plot", "A"} <= set(reached), f"Tab reached {reached}")
    need(reached.count("plot") == 6, f"Tab reached {reached}")
    until("there are some samples", lambda: page.run("return history.samples.length > 3"))
    page.run("document.querySelector('.plot').focus()")
    value = "return document.querySelector('.plot').getAttribute('aria-valuetext')"
    page.keys("\ue012")
    one = page.run(value)
    page.keys("\ue012")
    other = page.run(value)
    need(re.match(r"\d\d:\d\d:\d\d: read .*, written ", one) and one != other, f"arrows read {one!r} and {other!r}")
    need(page.run("return !!document.querySelector('.plot .cursor')"), "the moment is not marked")
    page.keys("\ue00c")


def is_readable_aloud(page):
    """What a screen reader gets: tables with headers, names for all that can be used, and little that speaks by itself."""
    page.devtools("Accessibility.enable")
    nodes = [node for node in page.devtools("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]
    role = lambda node: node.get("role", {}).get("value")
    name = lambda node: node.get("name", {}).get("value", "")
    roles = [role(node) for node in nodes]
    for wanted, least in [("table", 5), ("columnheader", 25), ("rowheader", 8), ("cell", 40), ("heading", 14), ("main", 1), ("slider", 6), ("banner", 1)]:
        need(roles.count(wanted) >= least, f"{roles.count(wanted)} of role {wanted}, {least} at least are expected")
    for node in nodes:
        if role(node) in ("slider", "combobox", "link", "meter", "table", "columnheader"):
            need(name(node).strip(), f"a {role(node)} without a name")
    live = page.run("return [...document.querySelectorAll('[aria-live],[role=alert],[role=status]')].map(e => e.innerText.length)")
    need(len(live) == 3 and max(live) < 300, f"what speaks by itself: {live}")


def has_contrast(page, scheme):
    """Text and what is behind it differ enough (WCAG AA), and so do the curves."""
    colours = page.run("const of = getComputedStyle(document.documentElement); return Object.fromEntries(['--ground','--card','--ink','--soft','--one','--two','--three','--four','--bad','--bad-ground','--good'].map(n => [n, of.getPropertyValue(n).trim()]))")

    def luminance(colour):
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    def ratio(one, other):
        light, dark = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for one in ["--ink", "--soft", "--one", "--two", "--three", "--four", "--bad", "--good"]:
        need(ratio(one, "--card") >= 4.5, f"{scheme}: {one} on --card has a contrast of {ratio(one, '--card'):.1f}")
    need(ratio("--soft", "--ground") >= 4.5 and ratio("--bad", "--bad-ground") >= 4.5, f"{scheme}: not enough contrast")


def fits(page, what):
    wide = page.run("return [document.documentElement.scrollWidth, innerWidth]")
    need(wide[0] <= wide[1], f"{what}: the page is {wide[0]} wide in a window of {wide[1]}")


def check(url, shots, *status_command):
    with browser() as page:
        page.look(DESKTOP, "light")
        page.open(url)
        until("the page shows a volume", lambda: page.run("return document.querySelectorAll('#volumes tbody tr').length") > 0)
        numbers_are_those_of(page, status_command)
        plots_move(page)
        works_without_a_mouse(page)
        is_readable_aloud(page)
        grounds = set()
        for name, size, scheme in [("desktop", DESKTOP, "light"), ("dark", DESKTOP, "dark"), ("phone", PHONE, "light"), ("phone-dark", PHONE, "dark")]:
            page.look(size, scheme)
            until("it is laid out anew", lambda: page.run("return innerWidth") == size[0])
            page.run("window.scrollTo(0, 0)")
            has_contrast(page, scheme)
            fits(page, name)
            grounds.add((scheme, page.run("return getComputedStyle(document.body).backgroundColor")))
            page.shoot(f"{shots}/{name}.png")
        need(len(grounds) == 2, f"light and dark look the same: {grounds}")
        asked = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
        need(asked and all(name.startswith(url) for name in asked), f"the page asked {asked}")
        page.run("fetch('https://192.0.2.1/').catch(() => window.refused = true)")
        until("a request to elsewhere is refused", lambda: page.run("return window.refused"), 20)
        complaints = [line for line in page.complaints() if "192.0.2.1" not in line]
        need(not complaints, f"the browser complains: {complaints}")


def watched(url, token, pid, shots):
    with browser() as page:
        page.look(DESKTOP, "light")
        page.open(url)
        need("ashlar" not in page.run("return document.body.innerText"), "the page is there for who shows no token")
        page.open(url.replace("://", f"://somebody:{token}@"))
        page.open(url)
        until("the page shows a volume", lambda: page.run("return document.querySelectorAll('#volumes tbody tr').length") > 0)
        need(page.run("return document.getElementById('silence').hidden"), "it complains although the server answers")
        os.kill(int(pid), signal.SIGKILL)
        until("it says that nobody answers", lambda: not page.run("return document.getElementById('silence').hidden"), 30)
        words = page.run("return document.getElementById('silence').innerText")
        need(re.search(r"does not answer: .*as of \d\d:\d\d:\d\d", words), words)
        need("no answer" in page.run("return document.title"), "the title does not say it")
        page.shoot(f"{shots}/silence.png")


if __name__ == "__main__":
    {"check": check, "watched": watched}[sys.argv[1]](*sys.argv[2:])
