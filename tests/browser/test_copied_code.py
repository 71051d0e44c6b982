"""What the page copies as code runs, and makes the picture that it was copied from."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.browser.visitor import CLIPBOARD, QUICK, Visitor
from tests.server.server_process import ServerProcess, running_server
from tests.services import skip_or_fail

Visit = Callable[..., Visitor]
KEY = "the-key-of-the-tests"
COMMANDS = {
    "curl": ["bash", "-e"],
    "Python": [sys.executable, "-"],
    "JavaScript": ["node", "--input-type=module", "-"],
    "PHP": ["php"],
}
"""What runs each language's code, which comes on standard input."""
FAILURES = {
    "refused": "steps: 5",
    "unreachable": "",
    "busy": "the server is busy",
}
"""What goes wrong, and what is said of it on standard error."""
NOBODY = "http://127.0.0.1:1/"
CODE = """async ([language, base, ...names]) => {
    const { codeFor } = await import(new URL("static/page/code.js", document.baseURI));
    const fields = {prompt: "a", steps: "5", seed: "7"};
    const [init_image, mask] = names.map((file) => ({file, source: "of elsewhere"}));
    const files = mask ? {init_image, mask} : {init_image};
    return codeFor(language, base, fields, files, false);
}"""
AWKWARD = """it's a "photo" été; $HOME `x` \\, (1).png"""
"""A name that means something to every language."""


def made_by_code(visitor: Visitor, language: str, folder: Path) -> bytes:
    code = visitor.copied_code(language)
    assert KEY not in code
    before = {path: path.read_bytes() for path in folder.glob("*.png")}
    done = subprocess.run(
        COMMANDS[language],
        input=code,
        cwd=folder,
        env={**os.environ, "API_KEY": KEY},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
    assert all(path.read_bytes() == bytes_ for path, bytes_ in before.items())
    (file,) = set(folder.glob("*.png")) - before.keys()
    made = file.read_bytes()
    file.unlink()
    return made


def check_all(
    visitor: Visitor, server: ServerProcess, folder: Path, name: str = "star.png"
) -> None:
    """Run every language's code in a folder that has the input, and compare."""
    shown = visitor.downloaded()
    sample = server.get("/static/pictures/star.png").content
    (folder / name).write_bytes(sample)
    missing = [name for name, (program, *_) in COMMANDS.items() if not shutil.which(program)]
    for language in COMMANDS:
        if language not in missing:
            assert made_by_code(visitor, language, folder) == shown, language
    if missing:
        skip_or_fail(f"{' and '.join(missing)} cannot be run here")


@pytest.mark.slow("browser")
def test_the_copied_code_makes_the_same_picture(
    visit: Visit, real_server: ServerProcess, tmp_path: Path
) -> None:
    visitor = visit(real_server.url, permissions=CLIPBOARD)
    visitor.sample("star")
    prompt = """it's a "pink" heart, $HOME `x` \\ é"""
    visitor.fill(prompt=prompt, negative_prompt="@file; a=b", **QUICK)
    visitor.generate()
    visitor.result()
    check_all(visitor, real_server, tmp_path)


@pytest.mark.slow("browser")
def test_the_copied_code_has_the_users_own_name_of_the_file(
    visit: Visit, real_server: ServerProcess, tmp_path: Path
) -> None:
    visitor = visit(real_server.url, permissions=CLIPBOARD)
    sample = real_server.get("/static/pictures/star.png").content
    file = {"name": AWKWARD, "mimeType": "image/png", "buffer": sample}
    visitor.page.locator("#file").set_input_files(file)
    visitor.fill(prompt="a cat", seed="7", **QUICK)
    visitor.generate()
    visitor.result()
    check_all(visitor, real_server, tmp_path, AWKWARD)
    # A result that became the input has the name under which it is downloaded, and is kept.
    visitor.page.locator("#use-as-input").click()
    visitor.page.locator("#stage-note", has_text="img2img-7.png").wait_for()
    visitor.generate()
    visitor.result()
    code = visitor.copied_code("Python")
    assert "# img2img-7.png: a result in the page, to be downloaded there\n" in code
    assert '"init_image": open("img2img-7.png", "rb")' in code
    assert 'open("img2img-7-2.png", "wb")' in code


@pytest.mark.slow("browser")
@pytest.mark.parametrize("language", [name.lower() for name in COMMANDS])
def test_no_two_files_of_the_copied_code_are_one(
    visit: Visit, real_server: ServerProcess, language: str
) -> None:
    page = visit(real_server.url).page
    both = page.evaluate(CODE, [language, NOBODY, "Mask.PNG", "mask.png"])
    assert "Mask.PNG" in both
    assert "mask-2.png: of elsewhere" in both
    for name in ("img2img-7.png", "IMG2IMG-7.PNG"):
        assert "img2img-7-2.png" in page.evaluate(CODE, [language, NOBODY, name])
    # A name does not end the comment that it is in.
    ended = page.evaluate(CODE, [language, NOBODY, "a\nb\u2028c?>.png"])
    lines = [line for line in ended.splitlines() if "of elsewhere" in line]
    assert [line.lstrip("#/ ") for line in lines] == ["a b c? >.png: of elsewhere"]


@contextmanager
def busy_server() -> Iterator[str]:
    """A server that answers 503 in the API's envelope."""

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"code":-1,"message":"the server is busy","data":null}'
            self.send_response(503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow("browser")
def test_the_copied_code_fails_where_the_request_does(
    visit: Visit, real_server: ServerProcess, tmp_path: Path
) -> None:
    page = visit(real_server.url).page
    (tmp_path / "star.png").write_bytes(real_server.get("/static/pictures/star.png").content)
    earlier = tmp_path / "img2img-7.png"
    earlier.write_bytes(b"an earlier result")
    runs = [*COMMANDS.items(), ("curl", ["sh"])]
    with busy_server() as busy:
        bases = {"refused": f"{real_server.url}/", "unreachable": NOBODY, "busy": busy}
        for (language, command), (failure, base) in itertools.product(runs, bases.items()):
            if not shutil.which(command[0]):
                continue
            done = subprocess.run(
                command,
                input=page.evaluate(CODE, [language.lower(), base, "star.png"]),
                cwd=tmp_path,
                capture_output=True,
                encoding="utf-8",
                timeout=60,
            )
            told = f"{command} {failure}\n{done.stdout}{done.stderr}"
            assert done.returncode != 0, told
            assert done.stderr.strip(), told
            assert FAILURES[failure] in done.stderr, told
            assert earlier.read_bytes() == b"an earlier result", told


@pytest.mark.slow("browser")
def test_the_copied_code_takes_its_key_from_the_environment(visit: Visit, tmp_path: Path) -> None:
    settings = {"root_path": "/images", "api_keys": KEY}
    with running_server("tests.server.stub_server", tmp_path, **settings) as server:
        server.url += "/images"
        server.wait_for("/health/ready")
        visitor = visit(server.url, permissions=CLIPBOARD)
        visitor.enter_key(KEY)
        visitor.sample("star")
        visitor.fill(prompt="0")
        visitor.generate()
        visitor.result()
        check_all(visitor, server, tmp_path)
