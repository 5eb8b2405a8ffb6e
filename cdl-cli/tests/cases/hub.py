"""A hub with the repository of one model, which misbehaves as its first argument says.

hub.py headers PORT ETAG COMMIT BODYFILE [NAMES]: sends these headers with the files NAMES (model.safetensors)
hub.py redirects PORT: sends every request for a file to the name localhost
hub.py stalls PORT: sends the first half of the weights and then nothing
"""
import hashlib
import http.server
import json
import sys
import time

MODE, PORT = sys.argv[1], int(sys.argv[2])
COMMIT, WEIGHTS = "a" * 40, b"not weights, but that comes later"


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.wfile.flush()

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        if self.path.startswith("/api/models/"):
            self.answer(200, json.dumps({"id": "owner/name", "sha": COMMIT}).encode())
        elif MODE == "redirects" and self.headers["Host"].startswith("127."):
            self.answer(308, Location=f"http://localhost:{PORT}{self.path}")
        elif name == "model.safetensors" and MODE == "stalls":
            self.answer(200, bytes(200_000), Content_Length="400000", ETag='"' + "b" * 64 + '"', X_Repo_Commit=COMMIT)
            time.sleep(60)
        elif name == "model.safetensors" and MODE == "redirects":
            self.answer(200, WEIGHTS, ETag=f'"{hashlib.sha256(WEIGHTS).hexdigest()}"', X_Repo_Commit=COMMIT)
        elif MODE == "headers" and name in (sys.argv[6:] or ["model.safetensors"])[0].split(","):
            body = open(sys.argv[5], "rb").read()
            self.answer(200, body, ETag=f'"{sys.argv[3]}"', X_Repo_Commit=sys.argv[4])
        else:
            commit = sys.argv[4] if MODE == "headers" else COMMIT
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)

    do_HEAD = do_GET


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Hub).serve_forever()
