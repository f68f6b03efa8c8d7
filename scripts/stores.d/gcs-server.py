"""A server for scripts/stores that answers what ashlar asks of Google Cloud Storage, in memory, and keeps its conditions. gcs-server.py PORT"""

import http.server
import json
import sys
import threading
from urllib.parse import parse_qs, unquote, urlsplit

objects, lock = {}, threading.Lock()
BUCKET = "/storage/v1/b/disks/o"


class Bucket(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def error(self, status, reason, message):
        self.answer(status, json.dumps({"error": {"code": status, "message": message, "errors": [{"reason": reason}]}}).encode())

    def handle_one(self):
        target = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return
        if BUCKET not in target.path:
            return self.error(404, "notFound", "The specified bucket does not exist.")
        if self.headers.get("Authorization") != "Bearer t":
            return self.error(401, "authError", "Invalid Credentials")
        name = unquote(target.path.split(BUCKET, 1)[1].lstrip("/"))
        with lock:
            if self.command == "POST":
                assert query["ifGenerationMatch"] == "0"
                if query["name"] in objects:
                    return self.error(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
                objects[query["name"]] = body
                return self.answer(200, json.dumps({"name": query["name"], "generation": "1"}).encode())
            if not name:
                return self.list(query)
            if name not in objects:
                return self.answer(404, f"No such object: disks/{name}".encode())
            if self.command == "DELETE":
                del objects[name]
                return self.answer(204)
            whole = objects[name]
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = whole[int(first) : int(last) + 1 if last else None]
        if "Range" not in self.headers:
            return self.answer(200, whole, x_goog_generation="1")
        if not part:
            return self.answer(416)
        end = int(first) + len(part) - 1
        self.answer(206, part, x_goog_generation="1", Content_Range=f"bytes {first}-{end}/{len(whole)}")

    def list(self, query):
        prefix, most = query.get("prefix", ""), int(query.get("maxResults", 1000))
        begin = max(query.get("startOffset", ""), query.get("pageToken", ""))
        names = sorted(name for name in objects if name.startswith(prefix) and name >= begin)
        folders = set()
        if "delimiter" in query:
            folders = {prefix + name[len(prefix) :].split("/")[0] + "/" for name in names if "/" in name[len(prefix) :]}
            names = [name for name in names if "/" not in name[len(prefix) :]]
        page = {"kind": "storage#objects", "prefixes": sorted(folders)}
        page["items"] = [{"name": name, "size": str(len(objects[name]))} for name in names[:most]]
        if names[most:]:
            page["nextPageToken"] = names[most]
        self.answer(200, json.dumps(page).encode())

    do_GET = do_POST = do_DELETE = handle_one

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64


Server(("127.0.0.1", int(sys.argv[1])), Bucket).serve_forever()
