"""demo.py: the page and its API, and what a hostile visitor would try."""

import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browser import open_page, screenshot
from conftest import DRAWING, HANGING, PROJECT, encoded, error_of, predictions, run, start
from formats import ALPHA, RGB, exif, saved
from image_files import bomb_png

SECRET = "/etc/passwd"
BOTH = np.dstack([RGB, ALPHA])
UPLOADED = {"_type": "gradio.FileData"}
REPORT = """<h1>a report</h1><script>
let seen = "nothing";
try { seen = parent.document.title; } catch (error) {}
document.querySelector("h1").textContent = "a report that sees " + seen;
</script>"""


class Server:
    """demo.py, running; `url` is its address, `folder` the one it keeps uploads in, `lines` what it printed."""

    def __init__(self, run_folder, temporary, *flags):
        pytest.importorskip("gradio")
        with socket.socket() as attempt:  # a free port
            attempt.bind(("127.0.0.1", 0))
            self.port = attempt.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        temporary.mkdir(exist_ok=True)
        environment = os.environ | {"TMPDIR": str(temporary), "GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True"}
        with open(temporary / "log.txt", "w") as log:
            options = {"env": environment, "cwd": temporary, "stderr": log}
            self.process = start("demo", "--model", run_folder, "--port", self.port, *flags, **options)
        self.lines = []
        while not any(line.startswith("open http") for line in self.lines):
            line = self.process.stdout.readline()
            assert line, self.process.communicate()
            self.lines.append(line)
        (self.folder,) = temporary.glob("demo-*")

    def request(self, path, data=None, headers=None):
        """The (status, text) of the answer to a request."""
        request = urllib.request.Request(self.url + path, data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=HANGING) as response:
                return response.status, response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def upload(self, *files, **headers):
        """Upload (name, bytes); returns the (status, text) of the answer, which lists their paths."""
        part = '--x\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n\r\n'
        body = b"".join(part.format(name).encode() + data + b"\r\n" for name, data in files) + b"--x--\r\n"
        return self.request("/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"} | headers)

    def predict(self, *paths, meta=UPLOADED):
        """What the API says of paths: (the event, the data)."""
        data = json.dumps({"data": [[{"path": str(path), "meta": meta} for path in paths]]}).encode()
        status, text = self.request("/gradio_api/call/predict", data, {"Content-Type": "application/json"})
        assert status == 200, text
        _, text = self.request(f"/gradio_api/call/predict/{json.loads(text)['event_id']}")
        event, data = text.strip().split("\n")[-2:]
        return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    def answers(self, *paths, **options):
        """What a program gets: the answers to files, {name: object}."""
        gradio_client = importlib.import_module("gradio_client")
        with contextlib.closing(gradio_client.Client(self.url, verbose=False, analytics_enabled=False, **options)) as client:
            answers = client.predict([gradio_client.handle_file(path) for path in paths], api_name="/predict")
        return {answer.pop("file"): answer for answer in answers}

    def end(self, signum):
        """End it by a signal; returns the exit code."""
        self.process.send_signal(signum)
        self.process.communicate(timeout=HANGING)
        assert not self.folder.exists()
        return self.process.returncode


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    run_folder = Path(shutil.copytree(trained, folder / "run"))
    (run_folder / "curves.png").write_bytes(encoded(".png"))
    (run_folder / "report.html").write_text(REPORT)
    server = Server(run_folder, folder / "temporary")
    yield server
    assert server.end(signal.SIGTERM) == 143


def test_a_program_gets_the_answers_of_predict_and_the_same_sentences_for_bad_files(server, trained, photo):
    files = {"empty.jpg": b"", "page.html": b"<script>alert(1)</script>", "renamed.jpg": encoded(".png")}
    files |= {"bomb.png": bomb_png(), "broken.jpg": photo.read_bytes()[:200], "after.png": encoded(".png")}
    files |= {f"turned.{kind}": saved(BOTH, kind, exif=exif(6)) for kind in ("png", "webp", "tiff", "avif")}
    for name, data in files.items():
        Path(name).write_bytes(data)
    expected = predictions(trained, photo, *files, code=1)
    assert sum("error" in answer for answer in expected.values()) == 5
    answers = server.answers(str(photo), *files)
    assert answers == {Path(answer.pop("path")).name: answer for answer in expected.values()}


def test_only_so_many_files_are_answered_at_once(server):
    names = [f"{k}.png" for k in range(22)]
    for k, name in enumerate(names):
        Path(name).write_bytes(encoded(".png", np.full((9, 9, 3), k, np.uint8)))
    errors = [answer.get("error") for answer in server.answers(*names).values()]
    assert errors == [None] * 20 + ["one of too many: at most 20 at once"] * 2


OTHER_SITES = [{"Host": "evil.example"}, {"Host": "127.0.0.1"}]  # names that lead here: DNS rebinding
OTHER_SITES += [{"Origin": origin} for origin in ("http://evil.example", "null", "http://127.0.0.1:1")]  # another program
OTHER_SITES += [{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}]


@pytest.mark.parametrize("headers", OTHER_SITES, ids=str)
def test_another_sites_page_is_refused(server, headers):
    for path in ("/", "/config", "/gradio_api/info"):
        assert server.request(path, None, headers)[0] in (403, 421)
    for path in ("/login", "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/call/predict"):
        assert server.request(path, b"{}", headers)[0] in (403, 421)


UP = 12 * "/.."
FILES = f"""
{SECRET} %2Fetc%2Fpasswd {{folder}}{UP}{SECRET} {{folder}}{12 * "/..%2f"}{SECRET} {{folder}}{12 * "/%252e%252e"}{SECRET}
{{project}}/README.md {{run}}/model.json model.json ../x {{folder}}
file://{SECRET} http://127.0.0.1:{{port}}/config https://example.com/
""".split()
OTHERS = f"""
/file={SECRET} /gradio_api/file/{SECRET} /gradio_api/proxy=http://127.0.0.1:{{port}}/config
/static{UP}{SECRET} /assets{12 * "/..%2f"}{SECRET} /svelte{12 * "/%2e%2e"}{SECRET}
/gradio_api/deep_link /monitoring /gradio_api/stream/a/b/c/playlist-file /gradio_api/runs
/gradio_api/custom_component/a/b/c/d
""".split()


@pytest.mark.parametrize("path", [*(f"/gradio_api/file={path}" for path in FILES), *OTHERS])
def test_other_files_and_addresses_are_refused(server, trained, path):
    path = path.format(folder=server.folder, project=PROJECT, run=trained, port=server.port)
    status, text = server.request(path)
    assert status in (403, 404), text
    assert "root:" not in text


@pytest.mark.parametrize("call", ["run/predict", "api/predict", "component_server", "process_recording", "vibe-edit"])
def test_calls_that_the_page_does_not_need_are_refused(server, call):
    assert server.request(f"/gradio_api/{call}", b'{"data": [[]]}', {"Content-Type": "application/json"})[0] == 404


WEB = ("http://127.0.0.1:{port}/x.jpg", "https://example.com/x.jpg")


@pytest.mark.parametrize("meta", [UPLOADED, {}])
@pytest.mark.parametrize("path", [SECRET, "{folder}/../../x.jpg", "{photo}", f"file://{SECRET}", *WEB])
def test_only_uploaded_files_are_predicted(server, path, meta):
    photo = PROJECT / "testing_data/dogs/dog_001.jpg"
    event, data = server.predict(path.format(folder=server.folder, photo=photo, port=server.port), meta=meta)
    assert event == "error", data
    if path in WEB and meta:  # not even asked for
        assert data["error"] == "only uploaded files can be predicted"


@pytest.mark.parametrize(
    "name", ["../../../x.jpg", "/etc/cron.d/x.jpg", "..%2f..%2fx.jpg", "C:\\x.jpg", "a/../../x.jpg", "..", "."]
)
def test_an_upload_stays_in_its_folder(server, name):
    data = encoded(".jpg", np.full((9, 9, 3), len(name), np.uint8))
    status, text = server.upload((name, data))
    if name in ("..", ".") and status == 400:
        return
    assert status == 200
    (path,) = json.loads(text)
    assert Path(path).resolve().is_relative_to(server.folder.resolve())
    assert Path(path).read_bytes() == data


@pytest.mark.parametrize(("width", "height"), [(1200, 800), (360, 740)])
def test_a_visitor_sees_the_answers(server, trained, browser, photo, width, height):
    expected = predictions(trained, photo)[str(photo)]
    with open_page(browser, server.url, width, height) as page:
        assert "cnn, 32 px, validation accuracy" in page.inner_text("#run-line")

        def drop(files):
            """Choose files of {name: bytes}; returns the texts of their answers."""
            page.get_by_text("Drop File Here").wait_for()
            files = [{"name": name, "mimeType": "image/jpeg", "buffer": data} for name, data in files.items()]
            page.set_input_files("#photos input[type=file]", files)
            page.locator("#answers").get_by_text(files[-1]["name"]).wait_for()
            return page.locator("#answers article").all_inner_texts()

        answer, broken = drop({"photo.jpg": photo.read_bytes(), "broken.jpg": photo.read_bytes()[:200]})
        assert expected["class"] in answer
        assert f"{expected['probability']:.1%}" in answer
        assert "This file cannot be used: damaged or truncated JPEG." in broken
        assert page.evaluate("[...document.querySelectorAll('#answers img')].map(image => image.naturalWidth)") == [320, 320]
        screenshot(page, f"demo-{width}")
        if width < 1000:
            (large,) = drop({"large.png": encoded(".png", np.zeros((10_000, 10_000), np.uint8))})
            assert "%" in large
            (again,) = drop({"again.jpg": photo.read_bytes()})
            assert expected["class"] in again
        page.locator("#examples button").first.click()
        page.locator("#answers").get_by_text("cat_001.jpg").wait_for()
        page.get_by_role("tab", name="Curves and report").click()
        page.frame_locator("#run iframe").get_by_text("a report that sees nothing").wait_for()
        assert page.locator("#run img").evaluate("image => image.naturalWidth") == DRAWING.shape[1]
        screenshot(page, f"demo-report-{width}")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert (page.foreign, page.errors) == ([], [])


def test_huge_requests_are_refused_before_they_are_read(server):
    connection = importlib.import_module("http.client").HTTPConnection("127.0.0.1", server.port, timeout=HANGING)
    for path, length, status in (("upload", 257 << 20, 413), ("queue/join", 2 << 20, 413), ("upload", "chunked", 411)):
        connection.putrequest("POST", f"/gradio_api/{path}")
        connection.putheader(*("Transfer-Encoding", length) if length == "chunked" else ("Content-Length", length))
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()
    assert server.upload(("huge.jpg", bytes(51 << 20)))[0] == 413
    assert not any(path.stat().st_size > 50 << 20 for path in server.folder.rglob("*"))


def test_beyond_this_machine_it_needs_a_password(trained, tmp_path):
    server = Server(trained, tmp_path / "temporary", "--host", "0.0.0.0")
    password = server.lines[-2].split()[-1]
    assert len(password) >= 16
    for path in ("/config", "/gradio_api/info", f"/gradio_api/file={server.folder}/x"):
        assert server.request(path)[0] in (401, 403)
    assert server.upload(("a.png", encoded(".png")))[0] == 401
    assert server.request("/config", None, {"Origin": "http://evil.example"})[0] == 403
    Path("a.png").write_bytes(encoded(".png", DRAWING))
    assert "class" in server.answers("a.png", auth=("demo", password))["a.png"]
    assert server.end(signal.SIGINT) == 130


def test_a_port_in_use_and_a_bad_address_are_said(server, trained):
    taken = run("demo", "--model", trained, "--port", server.port, code=1)
    assert error_of(taken).startswith(f"error: cannot open port {server.port} of 127.0.0.1 (Address already in use")
    assert "cannot open port" in error_of(run("demo", "--model", trained, "--host", "192.0.2.1", code=1))


@pytest.mark.parametrize("version", [None, "4.44.1", "6.23.1"])
def test_without_a_safe_gradio_it_says_so(monkeypatch, version):
    def version_of(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", version_of)
    assert "pip install -c requirements-optional.txt gradio" in error_of(run("demo", code=2))
