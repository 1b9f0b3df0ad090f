"""A store that fails now and then: what is asked again comes whole; what never comes is said."""

import contextlib
import http.server
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.storage import _buckets


class Faulty(http.server.BaseHTTPRequestHandler):
    """Hands requests on; some it fails, and some answers it cuts in half."""

    protocol_version = "HTTP/1.1"
    behind = ""
    fails = staticmethod(lambda number: None)
    count = 0

    def _answer(self):
        type(self).count += 1
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        fault = self.fails(self.count)
        if fault == "503":
            return self._send(503, b"try again", {})
        headers = {name: value for name, value in self.headers.items() if name != "Host"}
        request = urllib.request.Request(
            self.behind + self.path, body, headers, method=self.command
        )
        try:
            with urllib.request.urlopen(request) as response:
                status, data, told = response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            status, data, told = error.code, error.read(), error.headers
        self._send(status, data, told, is_cut=fault == "cut")

    def _send(self, status, data, headers, *, is_cut=False):
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if is_cut:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _answer

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def faulty(gs_server, make_bucket, monkeypatch):
    """`faulty(name, fails)`: a bucket behind a store whose n-th request fails as that says."""
    import gcsfs

    with contextlib.ExitStack() as stack:

        def make(name, fails):
            bucket = make_bucket(name)
            handler = type(
                "Handler", (Faulty,), {"behind": gs_server, "fails": staticmethod(fails)}
            )
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            where = f"http://127.0.0.1:{server.server_address[1]}"
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", where)
            _buckets.filesystem.cache_clear()
            gcsfs.GCSFileSystem.clear_instance_cache()
            return bucket, handler

        yield make
    _buckets.filesystem.cache_clear()
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_request_that_fails_now_and_then_is_made_again(faulty, fault, tmp_path):
    bucket, handler = faulty(
        f"now-and-then-{fault}", lambda number: fault if number % 4 == 3 else None
    )
    root = storage.path(f"{bucket}/run")
    data = np.random.default_rng(0).bytes(200_000)
    (tmp_path / "a").write_bytes(data)
    for number in range(3):
        storage.copy_file(tmp_path / "a", root / f"a{number}")
        storage.append_line(root / "lines", f"line {number}")
    assert all(storage.read_bytes(root / f"a{number}") == data for number in range(3))
    assert storage.recover_lines(root / "lines") == ["line 0", "line 1", "line 2"]
    with storage.new_folder(root / "model", last="manifest") as building:
        for name in ("weights", "manifest"):
            (building / name).write_bytes(data)
    assert [path.name for path in storage.match(root / "model", "*")] == ["manifest", "weights"]
    assert not (root / "nothing").exists()
    assert handler.count > 20


@pytest.mark.slow
def test_a_store_that_never_answers_is_no_empty_one(faulty):
    bucket, handler = faulty("never", lambda number: "503" if number > 40 else None)
    root = storage.path(f"{bucket}/run")
    storage.replace_text(root / "config.json", "{}")
    handler.count = 100
    # Once: gcsfs asks again for half a minute before it gives up.
    with pytest.raises(UserError, match="cannot be reached"):
        (root / "config.json").is_file()
