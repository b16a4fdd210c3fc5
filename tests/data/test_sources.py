"""Images that people name: folders, URLs of a real server, and what is wrong with them."""

import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from data import sources
from data.decoding import BadImageError


class Handler(BaseHTTPRequestHandler):
    """Answers /NAME by the method of that name."""

    def do_GET(self):
        getattr(self, self.path[1:].partition(".")[0], lambda: self.send_error(404))()

    def log_message(self, *arguments):
        pass

    def answer(self, body, length=None, **headers):
        self.send_response(200)
        self.send_header("Content-Length", len(body) if length is None else length)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def picture(self):
        self.answer(self.server.picture)

    def packed(self):
        self.answer(gzip.compress(self.server.picture), Content_Encoding="gzip")

    def cut(self):
        self.answer(self.server.picture[:-200], len(self.server.picture))

    def page(self):
        self.answer(b"<html>no picture</html>")

    def large(self):
        self.answer(bytes(3 << 20))

    def silent(self):
        time.sleep(0.6)

    def dripping(self):
        self.answer(b"", 100)
        for _ in range(30):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)


@pytest.fixture
def server(rng):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # clients that leave early
    image = cv2.resize(rng.integers(0, 256, (5, 6, 3), np.uint8), (60, 50))
    server.picture = cv2.imencode(".png", image)[1].tobytes()
    server.image = image
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["picture.png", "packed.png"])
def test_a_picture_is_downloaded(server, path):
    assert np.array_equal(sources.read(f"{server.url}/{path}"), server.image)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nowhere.png", "cannot download the image .*: the server answered 404 Not Found"),
        ("cut.png", "ends the connection"),
        ("large.png", "sends more than 1 MiB"),
        ("silent.png", "does not answer in time"),
        ("dripping.png", "has not sent all of it in 0.3 s"),
        ("page.png", "the image http.* is corrupt or truncated, or no image"),
    ],
)
def test_what_a_server_does_wrong_is_a_sentence(server, monkeypatch, path, problem):
    monkeypatch.setattr(sources, "LIMIT", 1 << 20)
    monkeypatch.setattr(sources, "TIMEOUT", (1, 0.2))
    monkeypatch.setattr(sources, "DEADLINE", 0.3)
    with pytest.raises(BadImageError, match=problem):
        sources.read(f"{server.url}/{path}")


@pytest.mark.parametrize(
    "url", ["http://", "http://[::", "https://name.invalid/x.jpg", "HTTP://a b"]
)
def test_no_server(url):
    with pytest.raises(BadImageError, match="cannot be reached"):
        sources.read(url)


def test_folders_are_replaced_by_their_images(tmp_path, rng):
    image = rng.integers(0, 256, (8, 9, 3), np.uint8)
    for name in ("b/2.JPG", "b/a/1.png", "c.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / "b" / "notes.txt").write_text("none")
    (tmp_path / "empty").mkdir()
    names = ["x.jpg", str(tmp_path / "b"), "https://e/f", str(tmp_path / "empty")]
    found = list(sources.expand(names))
    inside = [str(tmp_path / "b/2.JPG"), str(tmp_path / "b/a/1.png")]
    assert found == ["x.jpg", *inside, *names[2:]]
    with pytest.raises(BadImageError, match="empty holds no images"):
        sources.read(names[3])
    with pytest.raises(BadImageError, match=r"cannot read the image x.jpg \(No such file"):
        sources.read("x.jpg")


def test_stems():
    assert sources.stems(["a/dog.x.jpg", "my dog.png", "http://h/cat.png?w=1"]) == [
        "dog", "my_dog", "cat"]  # fmt: skip
    assert sources.stems(["a/1.jpg", "b/1.jpg"]) == ["00000000_1", "00000001_1"]
