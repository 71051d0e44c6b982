"""The JavaScript client outside a browser, in Node: a picture, its progress, retries, failures."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.server_process import ServerProcess
from tests.services import skip_or_fail

NODE = shutil.which("node")
SCRIPT = """
import { createServer } from "node:http";
import { readFileSync, writeFileSync } from "node:fs";
import { ImageToImage, ImageToImageError, imageToImage, newKey } from "./client.mjs";

const [url] = process.argv.slice(2);
const init_image = new Blob([readFileSync("in.png")]);
const fields = { init_image, prompt: "a blue house on snow", steps: 10, seed: 7, previews: true };
const seen = [];
const result = await imageToImage(fields, { url, onProgress: (event) => seen.push(event) });
writeFileSync("out.png", Buffer.from(await result.picture.arrayBuffer()));

const refused = await imageToImage({ ...fields, steps: 5, cfg_scale: 99 }, { url }).catch((e) => e);

// A run that is left, found again, and let go of.
const client = new ImageToImage({ url });
const runId = newKey();
for await (const { type } of client.stream(fields, { runId })) if (type === "progress") break;
let found = null;
for await (const event of client.watch(runId)) found = event;
const states = [await client.cancel(runId), await client.cancel(runId)];
const gone = await client.watch(newKey()).next().catch((error) => error.status);

// A server that is busy once, then cuts its stream, then answers in pieces of one byte.
const keys = [];
const answers = [
  (response) => response.writeHead(503, { "Retry-After": "0" })
    .end('{"code":-1,"message":"busy","data":null}'),
  (response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.write(": keep-alive\\n\\n");
    setTimeout(() => response.destroy(), 50);
  },
  (response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    const text = 'event: progress\\r\\ndata: {"step":1,"steps":2,"queue_position":0}\\r\\n\\r\\n' +
      'event: result\\ndata: {"code":0,"message":"success","data":{"image":"aGk=","seed":3}}\\n\\n';
    for (const letter of text) response.write(letter);
    response.end();
  },
];
const server = createServer((request, response) => {
  keys.push(request.headers["idempotency-key"]);
  request.resume().on("end", () => answers.shift()(response));
}).listen(0, "127.0.0.1");
await new Promise((resolve) => server.on("listening", resolve));
const flaky = new ImageToImage({ url: `http://127.0.0.1:${server.address().port}` });
const events = [];
for await (const event of flaky.stream(fields)) events.push(event.type);
server.close();

const cancelled = new AbortController();
const ended = imageToImage(fields, { url, signal: cancelled.signal }).catch((e) => e.name);
cancelled.abort();

console.log(JSON.stringify({
  seed: result.seed,
  steps: seen.map(({ step, steps }) => [step, steps]),
  previews: seen.filter(({ preview }) => preview instanceof Blob).length,
  refused: [refused instanceof ImageToImageError, refused.status, refused.fields],
  found: [found.type, found.seed, found.model], states, gone,
  events, keys, cancelled: await ended,
}));
"""


@pytest.mark.slow("browser")
def test_the_client_in_node(real_server: ServerProcess, tmp_path: Path) -> None:
    if NODE is None:
        skip_or_fail("no Node is installed (Debian: apt-get install nodejs)")
    (tmp_path / "client.mjs").write_bytes(real_server.get("/client.js").content)
    (tmp_path / "in.png").write_bytes(real_server.get("/static/pictures/house.png").content)
    script = tmp_path / "use.mjs"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [NODE, script, real_server.url],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["seed"] == 7
    assert said["steps"][-1] == [10, 10]
    assert said["previews"] > 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    fields = {"steps": "5 is not in 10..50", "cfg_scale": "99 is not in 0..35"}
    assert said["refused"] == [True, 400, fields]
    assert said["found"] == ["result", 7, "embedded"]
    assert said["states"] == ["finished", "unknown"]
    assert said["gone"] == 404
    assert said["events"] == ["retry", "retry", "progress", "result"]
    assert len(said["keys"]) == 3
    assert len(set(said["keys"])) == 1
    assert said["cancelled"] == "AbortError"


def test_the_client_is_for_pages_elsewhere_too(real_server: ServerProcess) -> None:
    for path, kind in (("/client.js", "text/javascript"), ("/client.d.ts", "application/typesc")):
        answer = real_server.get(path)
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("folder", ["page", "pictures"])
def test_the_pages_files_are_asked_for_anew(real_server: ServerProcess, folder: str) -> None:
    path = {"page": "/static/page/main.js", "pictures": "/static/pictures/house.png"}[folder]
    answer = real_server.get(path)
    assert answer.headers["cache-control"] == "no-cache"
    tag = {"If-None-Match": answer.headers["etag"]}
    assert real_server.get(path, headers=tag).status_code == 304
