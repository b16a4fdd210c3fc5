"""Downloads against a real server that misbehaves: the whole file in the end, or one sentence."""

import hashlib
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tests.support import ROOT
from utils import UserError
from weights import download

CONTENT = np.random.default_rng(0).bytes(600_000)
OTHER = np.random.default_rng(1).bytes(500_000)
PAGE = b"\n  <!DocType HTML><title>Log in</title>" + b" " * 3000


class Handler(BaseHTTPRequestHandler):
    """Answers each request by the next name in server.script, and by "file" after its end."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(dict(self.headers))
        what = self.server.script.pop(0) if self.server.script else "file"
        if isinstance(what, int):
            self.answer(what, b"<html>an error page", kind="text/html")
        elif what.startswith("to "):
            self.send_response(302)
            self.send_header("Location", what[3:])
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
        else:
            getattr(self, what)()

    def log_message(self, *arguments):
        pass

    def answer(self, status, body, length=None, kind="application/octet-stream", extra=()):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        if length != "none":
            self.send_header("Content-Length", length or len(body))
        for key, value in {**self.server.marks, **dict(extra)}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def start(self):
        """Where the asked range starts, or 0; as a server that knows If-Range."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.headers.get("If-Range") in (None, *self.server.marks.values()):
            return int(asked[1])
        return 0

    def file(self, keep=1.0, start=None, length=None, told=None):
        content = self.server.content
        start = self.start() if start is None else start
        if start >= len(content):
            self.answer(416, b"", extra={"Content-Range": f"bytes */{len(content)}"})
            return
        body = content[start:]
        span = {}
        if start:
            at = start if told is None else told
            span = {"Content-Range": f"bytes {at}-{len(content) - 1}/{len(content)}"}
        self.answer(
            206 if start else 200, body[: int(len(body) * keep)], length or len(body), extra=span
        )

    def drop(self):
        self.file(keep=0.5)

    def reset(self):
        self.file(keep=0.5)
        # What is still on its way is lost by a reset.
        wait_for(lambda: part_of(self.server).exists() and part_of(self.server).stat().st_size)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def whole(self):  # a server that knows no ranges
        self.file(start=0)

    def drop_whole(self):
        self.file(keep=0.5, start=0)

    def wrong_range(self):
        self.file(start=1000)

    def shifted_range(self):  # as many bytes as asked for, but others
        length, whole = len(self.server.content) - self.start(), len(self.server.content)
        span = {"Content-Range": f"bytes 7-{length + 6}/{whole}"}
        self.answer(206, self.server.content[7 : length + 7], extra=span)

    def heedless(self):  # a server that knows ranges, but not If-Range
        self.file(start=int(re.search(r"\d+", self.headers.get("Range", "0"))[0]))

    def short_part(self):  # 206 with a correct, but smaller range than asked for
        start, whole = self.start(), len(self.server.content)
        end = (start + whole) // 2
        span = {"Content-Range": f"bytes {start}-{end - 1}/{whole}"}
        self.answer(206, self.server.content[start:end], extra=span)

    def part_of_unknown(self):  # as `file`, but the length of the whole is not told
        start, whole = self.start(), len(self.server.content)
        span = {"Content-Range": f"bytes {start}-{whole - 1}/*"}
        self.answer(206, self.server.content[start:], extra=span)

    def too_long_part(self):
        start, whole = self.start(), len(self.server.content)
        span = {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        self.answer(206, self.server.content[start:] + b"more", extra=span)

    def nothing(self):
        self.answer(200, b"")

    def no_answer(self):
        self.close_connection = True

    def page(self):
        self.answer(200, b"<p>Log in</p>" * 100, kind="Text/HTML; charset=utf-8")

    def disguised_page(self):
        self.answer(200, PAGE)

    def until_closed(self):
        self.answer(200, self.server.content, length="none")

    def chunked(self, end=b"0\r\n\r\n"):
        self.answer(200, b"", length="none", extra={"Transfer-Encoding": "chunked"})
        for i in range(0, 300_000 if not end else len(self.server.content), 50_000):
            piece = self.server.content[i : i + 50_000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(end)

    def drop_chunked(self):
        self.chunked(end=b"")

    def hang(self):
        self.server.leave.wait(10)
        self.close_connection = True

    def hang_half_way(self):
        self.drop()
        self.wfile.flush()
        self.server.leave.wait(10)

    def wait_half_way(self):  # for the test to open the gate
        half = len(self.server.content) // 2
        self.file(keep=0.5)
        self.wfile.flush()
        self.server.leave.wait(10)
        self.wfile.write(self.server.content[half:])


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, address):
        pass  # clients leave early here


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REPARAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(download, "TIMEOUT", (5, 10))
    return tmp_path / "cache"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (1, 0.4))


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.content, server.marks = CONTENT, {"ETag": '"one"'}
    server.script, server.requests, server.leave = [], [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/a/net.pkl"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.leave.set()
    server.shutdown()
    server.server_close()
    thread.join()


def files(cache):
    """What is in the cache beside locks."""
    return sorted(p.name for p in cache.iterdir() if p.suffix != ".lock") if cache.exists() else []


def part_of(server):
    path = download._cache_path(server.url)
    return path.with_name(path.name + ".part")


def ranges(server):
    return [headers.get("Range") for headers in server.requests]


def wait_for(condition, seconds=8):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def fails(server, match):
    """The sentence that the download ends with; nothing is then taken for the file."""
    with pytest.raises(UserError, match=match) as caught:
        download.fetch(server.url)
    sentence = str(caught.value)
    assert server.url in sentence and "\n" not in sentence and "Traceback" not in sentence
    assert not download._cache_path(server.url).exists()
    return sentence


# ---------------------------------------------------------------- what works


def test_only_the_published_file_is_kept(server, cache):
    """Another file, such as a proxy may send, is refused whatever its length."""
    known = hashlib.sha256(CONTENT).hexdigest()[:8]
    with pytest.raises(UserError, match=f"SHA-256 begins with {known} instead of 12345678; try"):
        download.fetch(server.url, "12345678")
    assert not files(cache)
    assert download.fetch(server.url, known).read_bytes() == CONTENT


def test_a_file_is_downloaded_once(server, cache, capfd):
    path = download.fetch(server.url)
    assert path.read_bytes() == CONTENT
    assert path.name.endswith("-net.pkl") and files(cache) == [path.name]
    assert server.requests[0]["Accept-Encoding"] == "identity"
    assert download.fetch(server.url) == path
    assert len(server.requests) == 1
    assert capfd.readouterr() == ("", "")  # the progress bar is for terminals


@pytest.mark.parametrize("drops", [["drop"], ["drop", "drop"], ["reset"], ["drop", "short_part"]])
@pytest.mark.parametrize(
    "marks", [{"ETag": '"x"'}, {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}]
)
def test_a_broken_download_goes_on_where_it_stopped(server, cache, drops, marks):
    server.marks = marks
    server.script = list(drops)
    path = download.fetch(server.url)
    assert path.read_bytes() == CONTENT and files(cache) == [path.name]
    asked = [int(text[6:-1]) for text in ranges(server) if text]
    assert len(asked) == len(server.requests) - 1 and asked == sorted(set(asked))
    assert asked[0] > 0
    assert all(headers["If-Range"] in marks.values() for headers in server.requests[1:])


def test_the_next_call_goes_on_with_what_an_earlier_one_left(server):
    server.script = ["drop", "drop", "drop"]
    fails(server, "the connection broke|Connection broken")
    assert download.fetch(server.url).read_bytes() == CONTENT
    assert ranges(server)[3] is not None


@pytest.mark.parametrize(
    "script",
    [
        ["drop_whole", "whole"],
        ["drop", "wrong_range"],
        ["drop", "shifted_range"],
        ["drop", "too_long_part"],
        ["drop", "part_of_unknown"],
        ["drop", 416],
        [503],
        [500, 429],
        ["no_answer"],
        ["drop_chunked"],
        ["chunked"],
        ["until_closed"],
        ["drop", 503],
    ],
    ids=str,
)
def test_a_server_with_a_bad_moment_is_no_failure(server, cache, script):
    server.script = list(script)
    path = download.fetch(server.url)
    assert path.read_bytes() == CONTENT and files(cache) == [path.name]


@pytest.mark.parametrize("script", [["hang"], ["hang_half_way"]], ids=str)
def test_a_server_that_hangs_once_is_no_failure(server, impatient, script):
    server.script = list(script)
    assert download.fetch(server.url).read_bytes() == CONTENT and len(server.requests) == 2


def test_redirects_are_followed(server):
    server.script = ["to /elsewhere.pkl", "drop", "to /elsewhere.pkl"]
    path = download.fetch(server.url)
    assert path.read_bytes() == CONTENT and path.name.endswith("-net.pkl")
    assert [text is None for text in ranges(server)] == [True, True, False, False]


@pytest.mark.parametrize("resumed", ["file", "heedless", "whole"])
def test_a_file_that_changed_meanwhile_is_not_glued_together(server, resumed):
    server.script = ["drop", "drop", "drop"]
    fails(server, "again")
    server.content, server.marks = OTHER, {"ETag": '"two"'}
    server.script = [resumed]
    assert download.fetch(server.url).read_bytes() == OTHER
    assert server.requests[3]["If-Range"] == '"one"'


@pytest.mark.parametrize("marks", [{}, {"ETag": 'W/"weak"'}])
def test_without_a_mark_of_the_version_it_starts_over(server, marks):
    server.script, server.marks = ["drop"], marks
    assert download.fetch(server.url).read_bytes() == CONTENT
    assert ranges(server) == [None, None]


@pytest.mark.parametrize("note", [b"", b"\0\0", b'"o"\nX: y', b"\xff\xfe", b'"older"'])
def test_a_damaged_or_old_note_of_the_version_starts_over(server, note):
    part = part_of(server)
    part.parent.mkdir()
    part.write_bytes(OTHER[:1000])
    part.with_name(part.name + ".version").write_bytes(note)
    assert download.fetch(server.url).read_bytes() == CONTENT and len(server.requests) == 1


def test_a_part_longer_than_the_file_starts_over(server):
    part = part_of(server)
    part.parent.mkdir()
    part.write_bytes(CONTENT + b"more")
    part.with_name(part.name + ".version").write_text('"one"')
    assert download.fetch(server.url).read_bytes() == CONTENT
    assert ranges(server) == [f"bytes={len(CONTENT) + 4}-", None]


def test_names_in_the_cache_are_safe_and_do_not_collide(cache, monkeypatch):
    urls = ["a/net.pkl", "b/net.pkl", "a/net.pkl?v=2", "..", "a/%2e%2e%2f%00ü.pkl", "x" * 300, ""]
    paths = [download._cache_path(f"https://example.org/{url}") for url in urls]
    assert len(set(paths)) == len(urls)
    assert all(re.fullmatch(r"[0-9a-f]{10}-[A-Za-z0-9._-]{0,100}", path.name) for path in paths)
    assert all(path.parent == cache for path in paths)
    assert all(path.name.endswith("-net.pkl") for path in paths[:3])
    monkeypatch.delenv("REPARAM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(download._cache_path("http://h/f")).startswith("/x/reparam-megengine/")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/me")
    assert str(download._cache_path("http://h/f")).startswith("/me/.cache/reparam-megengine/")


# ---------------------------------------------------------------- what fails, in one sentence


@pytest.mark.parametrize(
    ("script", "match", "requests"),
    [
        ([404], "the server answered 404 Not Found; check the URL", 1),
        ([403], "the server answered 403 Forbidden", 1),
        ([416], "the server answered 416", 1),
        ([503] * 3, r"the server answered 503 .* \(3 tries\); .* try again", 3),
        ([429] * 3, "the server answered 429 Too Many Requests", 3),
        (["page"], "sent a web page instead of a file; open it in a browser", 1),
        (["disguised_page"], "sent a web page instead of a file", 1),
        (["drop", "page"], "sent a web page instead of a file", 2),
        (["drop"] * 3, "the connection broke", 3),
        (["nothing"] * 3, "0 bytes came instead of 0", 3),
        (["drop_whole"] * 3, "the connection broke", 3),
        (["drop_chunked"] * 3, "the connection broke", 3),
        (["no_answer"] * 3, "the connection broke", 3),
        (["to file:///etc/hostname"], "No connection adapters .*file:///etc/hostname.*check", 1),
        (["to ftp://127.0.0.1/x"], "No connection adapters .*ftp:.*; check the URL", 1),
    ],
    ids=str,
)
def test_a_failure_is_one_sentence_and_leaves_nothing_to_trust(server, script, match, requests):
    server.script = list(script)
    fails(server, match)
    assert len(server.requests) == requests
    server.script = []
    assert download.fetch(server.url).read_bytes() == CONTENT  # as if nothing had been


def test_a_page_in_place_of_the_rest_leaves_the_part_as_it_is(server):
    server.script = ["drop", "page"]
    fails(server, "web page")
    download.fetch(server.url)
    assert server.requests[2]["Range"] == server.requests[1]["Range"]


def test_a_server_that_always_hangs(server, impatient):
    server.script = ["hang"] * 3
    fails(server, r"the connection failed \(timed out\) \(3 tries\)")
    assert len(server.requests) == 3


def test_redirects_without_end(server):
    server.script = ["to /again"] * 40
    fails(server, "30 redirects")


def test_no_secure_connection(server):
    server.url = server.url.replace("http:", "https:")
    fails(server, r"the connection failed \([^)]+\) \(3 tries\)")


def test_nobody_listens(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x.pkl"
    with pytest.raises(UserError, match=r"failed \(Connection refused\) \(3 tries\); check"):
        download.fetch(url)
    assert files(cache) == []


@pytest.mark.parametrize(
    "url", ["net.pkl", "file:///etc/hostname", "ftp://h/f", "", "http://", "http:///f", "http://[/"]
)
def test_only_web_addresses_are_taken(url):
    with pytest.raises(UserError, match=r"^cannot download [^\n]*; (give one|check the URL)$"):
        download.fetch(url)


def test_the_cache_cannot_be_made(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REPARAM_CACHE", str(tmp_path / "file" / "cache"))
    fails(server, "cannot save .*: Not a directory; free some space, or set REPARAM_CACHE")


def test_the_disk_is_full(server):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, before[1]))  # writing then fails, for real
    try:
        fails(server, "cannot save .*: File too large; free some space, or set REPARAM_CACHE")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(server.requests) == 1
    assert download.fetch(server.url).read_bytes() == CONTENT
    assert ranges(server)[1] is not None


# ---------------------------------------------------------------- processes


@pytest.fixture
def process(server):
    """Starts a process that downloads the server's file and prints where it is."""
    started = []

    def start():
        code = (
            "import sys; from weights import download; download.TIMEOUT = (5, 10);"
            "print(download.fetch(sys.argv[1]))"
        )
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, server.url],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


def test_a_killed_download_is_resumed_by_the_next_run(server, cache, process):
    server.script = ["wait_half_way"]
    path, part = download._cache_path(server.url), part_of(server)
    first = process()
    wait_for(lambda: part.exists() and part.stat().st_size > 200_000)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert not path.exists()
    left = part.stat().st_size
    assert download.fetch(server.url).read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={left}-"] and files(cache) == [path.name]


def test_of_two_processes_the_second_waits_for_the_first(server, cache, process):
    server.script = ["wait_half_way"]
    first = process()
    wait_for(lambda: server.requests)
    second = process()
    assert second.stderr.readline().startswith("waiting for another process that downloads ")
    server.leave.set()
    results = [one.communicate(timeout=10) for one in (first, second)]
    path = download._cache_path(server.url)
    assert results == [(f"{path}\n", "")] * 2
    assert path.read_bytes() == CONTENT and files(cache) == [path.name]
    assert len(server.requests) == 1


def test_when_the_first_process_dies_the_second_goes_on(server, cache, process):
    server.script = ["wait_half_way"]
    first = process()
    wait_for(lambda: any(name.endswith(".part") for name in files(cache)))
    second = process()
    assert second.stderr.readline().startswith("waiting")
    first.kill()
    path = second.communicate(timeout=10)[0].strip()
    assert download.Path(path).read_bytes() == CONTENT and len(server.requests) == 2


def test_many_threads_at_once(server, cache):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(download.fetch(server.url).read_bytes()))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 6 and len(server.requests) == 1
