"""The JavaScript client outside a browser, in Node: a picture, its progress, retries, failures."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.server.server_process import ROOT, ServerProcess
from tests.services import skip_or_fail

NODE = shutil.which("node")
CLIENT = ROOT / "server" / "web" / "client.js"
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


STREAMS = """
import { createServer } from "node:http";
import { ImageToImage } from "./client.mjs";

const fields = { init_image: new Uint8Array([1]), prompt: "a house" };
const failed = (status) => ({ code: -1, message: `told ${status}`, data: null, status });
const credits = { charged: "0.4", remaining: "1.6" };
const made = { code: 0, message: "success", data: { image: "aGk=", seed: 3 }, credits };

/** What comes of `call(client)` where streams end with these envelopes; null cuts one. */
async function told(envelopes, call) {
  const asked = [];
  const server = createServer((request, response) => {
    asked.push(`${request.method} ${request.url.split("/").slice(0, 3).join("/")}`);
    keys.add(request.headers["idempotency-key"]);
    request.resume().on("end", () => {
      const envelope = envelopes.shift();
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      response.write('event: progress\\ndata: {"step":1,"steps":2,"queue_position":0}\\n\\n');
      if (envelope) response.end(`event: result\\ndata: ${JSON.stringify(envelope)}\\n\\n`);
      else setTimeout(() => response.destroy(), 20);
    });
  });
  const keys = new Set();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const client = new ImageToImage({ url: `http://127.0.0.1:${server.address().port}` });
  const retries = [];
  const end = await call(client, { onRetry: ({ status }) => retries.push(status) }).then(
    ({ seed, status, creditsCharged, creditsRemaining }) =>
      ({ seed, status, creditsCharged, creditsRemaining }),
    ({ message, status, mayRetry, ended }) => ({ message, status, mayRetry, ended }),
  );
  server.close();
  return { ...end, asked, retries, keys: keys.size };
}

const make = (client, options) => client.imageToImage(fields, options);
const run = (client, options) => client.imageToImage(fields, { ...options, runId: "a".repeat(32) });
const watch = async (client) => {
  for await (const event of client.watch("a".repeat(32))) if (event.type === "result") return event;
};
console.log(JSON.stringify({
  busy: await told([failed(503), made], make),
  late: await told([failed(504), made], make),
  cut: await told([null, made], run),
  run: await told([failed(503), made], run),
  withdrawn: await told([failed(409), made], run),
  watched: await told([failed(503), made], watch),
  far: await told([{ ...failed(503), retry_after: 121 }, made], make),
}));
"""

ANSWERS = """
import { createServer } from "node:http";
import { ImageToImage } from "./client.mjs";

const fields = { init_image: new Uint8Array([1]), prompt: "a house" };
const runId = "a".repeat(32);
const made = { code: 0, message: "success", data: { image: "aGk=", seed: 3 } };
const json = (response, status, value, headers = {}) =>
  response.writeHead(status, { "Content-Type": "application/json", ...headers })
    .end(JSON.stringify(value));

/** What `use(client)` resolves to where `answer(response, request)` answers, and what was asked. */
async function served(answer, use, options) {
  const asked = [];
  const server = createServer((request, response) => {
    asked.push(request.method);
    request.resume().on("end", () => answer(response, request, asked));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const client = new ImageToImage({ url: `http://127.0.0.1:${server.address().port}`, ...options });
  const said = await use(client);
  server.closeAllConnections();
  server.close();
  return { said, asked };
}

/** A client that is told `header` with a failure, `times`, and then makes the picture. */
const told = (status, header, { times = 1, ...options } = {}) => served(
  (response, request, asked) => asked.length > times ? json(response, 200, made)
    : json(response, status, { code: -1, message: "busy", data: null }, { "Retry-After": header }),
  async (client) => {
    const waits = [];
    const end = await client.imageToImage(fields, { onRetry: ({ seconds }) => waits.push(seconds) })
      .then(({ seed }) => seed, ({ status, retryAfter }) => [status, retryAfter]);
    return [waits, end];
  },
  options,
);
/** A client that is refused, loses its connection, is refused and then makes the picture. */
const lost = (header) => served(
  (response, request, asked) => {
    if (asked.length === 2) return response.destroy();
    if (asked.length > 3) return json(response, 200, made);
    json(response, 409, { code: -1, message: "not yet", data: null }, { "Retry-After": header });
  },
  (client) => client.imageToImage(fields).then(({ seed }) => seed, ({ status }) => [status]),
  { patience: 1 },
);
/** A client that is refused, and then has runs that are refused in the end, `times`. */
const ran = (times, options) => served(
  (response, request, asked) => {
    const failure = { code: -1, message: "away", data: null };
    if (asked.length === 1) return json(response, 503, failure, { "Retry-After": "0.6" });
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.write('event: progress\\ndata: {"step":1,"steps":2,"queue_position":0}\\n\\n');
    const result = asked.length > times + 1 ? made : { ...failure, status: 503, retry_after: 0.6 };
    response.end(`event: result\\ndata: ${JSON.stringify(result)}\\n\\n`);
  },
  (client) => client.imageToImage(fields).then(({ seed }) => seed, ({ status }) => [status]),
  { patience: 1, ...options },
);
const hour = 3600_000;
const date = (milliseconds) => new Date(Date.now() + milliseconds).toUTCString();

/** A run whose client cancels it on an event, where the server then says `states`. */
const cancelled = (event, states, cut) => served(
  (response, { method }) => {
    if (method === "DELETE")
      return json(response, 200, { code: 0, message: "", data: { state: states.shift() } });
    if (method === "GET") return json(response, 404, { code: -1, message: "gone", data: null });
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.write('event: progress\\ndata: {"step":1,"steps":2,"queue_position":0}\\n\\n');
    if (cut) setTimeout(() => response.destroy(), 20);
    else setTimeout(() => response.end(`event: result\\ndata: ${JSON.stringify(made)}\\n\\n`), 300);
  },
  async (client) => {
    const told = [];
    try {
      for await (const { type, seed } of client.stream(fields, { runId })) {
        if (type === event) while (states.length) told.push(await client.cancel(runId));
        if (type === "result") told.push(seed);
      }
    } catch ({ name, status, mayRetry }) {
      told.push(name, status, mayRetry);
    }
    return told;
  },
);

/** What is said of a request that cannot be sent as it is. */
const odd = (key, idempotencyKey) => served(
  (response) => json(response, 200, made),
  (client) => {
    client.key = key;
    return client.imageToImage(fields, { idempotencyKey, onRetry: () => { throw "tried again"; } })
      .then(({ seed }) => seed, ({ message, fields, mayRetry }) => [message, fields, mayRetry]);
  },
);

/** What is told of the model and the fields in headers like these. */
const named = (headers) => served(
  (response) => json(response, 200, made, headers),
  (client) => client.imageToImage(fields).then(({ model, ignored }) => [model, ignored]),
);

// Side by side, since each waits.
const cases = {
  oddKeys: Promise.all(
    ["k\\u2026", "\\u201ck\\u201d", "k\\u200bk", "k\\ud83d\\ude00", "k\\nk"].map((key) => odd(key)),
  ),
  oddIdempotency: odd("k", "\\u2026"),
  plainKeys: Promise.all(["k", "", undefined, "Bearer kl\\u00fc"].map((key) => odd(key))),
  urls: ["http://h", "http://h/", "http://h/a?b=c/d#e", "http://h/a/#e?b", new URL("http://h/?b=c")]
    .map((url) => new ImageToImage({ url }).url),
  named: named({
    "X-Model": "my/%C3%A9t%C3%A9 1.5 100%25",
    "X-Ignored-Fields": "foo, a%2C%20b, caf%C3%A9, cut%C3",
  }),
  unnamed: named({}),
  past: told(409, date(-hour)),
  soon: told(503, date(1900)),
  late: told(429, date(hour)),
  rfc850: told(409, "Sunday, 06-Nov-94 08:49:37 GMT"),
  asctime: told(409, "Sun Nov  6 08:49:37 1994"),
  nonsense: told(409, "later, GMT"),
  words: told(409, "Ask Later"),
  loading: told(503, "0.01", { times: 4 }),
  impatient: told(503, "0.6", { times: 9, patience: 1 }),
  once: told(503, "0.01", { retries: 0 }),
  often: told(429, "0", { times: 9 }),
  place: told(429, "0.01", { times: 2, retries: 1 }),
  first: told(409, "0.01", { times: 2, retries: 1 }),
  taken: told(429, "0.6", { times: 9, patience: 1 }),
  again: lost("0.6"),
  ran: ran(1),
  ranOften: ran(9, { retries: 1 }),
  pause: cancelled("retry", ["cancelled"], true),
  unknown: cancelled("retry", ["unknown"], true),
  running: cancelled("progress", ["cancelled"], false),
  finished: cancelled("progress", ["finished", "unknown"], false),
};
const ended = Object.entries(cases).map(async ([name, case_]) => [name, await case_]);
console.log(JSON.stringify(Object.fromEntries(await Promise.all(ended))));
"""


def in_node(script: str, url: str, folder: Path) -> dict[str, Any]:
    """Return what a script prints that has the client, and the address, beside it."""
    if NODE is None:
        skip_or_fail("no Node is installed (Debian: apt-get install nodejs)")
    shutil.copy(CLIENT, folder / "client.mjs")
    (folder / "use.mjs").write_text(script)
    done = subprocess.run(
        [NODE, "use.mjs", url], cwd=folder, capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_an_error_in_a_stream_has_its_own_status(tmp_path: Path) -> None:
    """The response was 200 when it began: what counts is what its last event says."""
    said = in_node(STREAMS, "", tmp_path)
    post, get = "POST /api/generate", "GET /api/runs"
    made = {"seed": 3, "status": 200, "creditsCharged": "0.4", "creditsRemaining": "1.6"}
    again = {"asked": [post, post], "retries": [503], "keys": 1}
    assert said["busy"] == made | again
    # A run that has ended so is begun anew, one whose connection was lost is found.
    assert said["run"] == made | again
    assert said["cut"] == made | {"asked": [post, get], "retries": [0], "keys": 2}

    def ended(status: int, asked: str, may_retry: bool = False) -> dict[str, Any]:
        error = {"message": f"told {status}", "status": status, "mayRetry": may_retry}
        return error | {"ended": True, "asked": [asked], "retries": [], "keys": 1}

    assert said["late"] == ended(504, post)
    # Its Retry-After is in the event too, and longer than anyone waits.
    assert said["far"] == ended(503, post, may_retry=True)
    assert said["withdrawn"] == ended(409, post)
    # Who only watches is told the same however often they ask.
    assert said["watched"] == ended(503, get, may_retry=True)


def test_a_retry_after_may_be_a_date(answers: dict[str, Any]) -> None:
    assert answers["past"] == {"said": [[0], 3], "asked": ["POST", "POST"]}
    (waits, seed) = answers["soon"]["said"]
    assert seed == 3
    assert 0 <= waits[0] <= 1.9
    (waits, (status, seconds)) = answers["late"]["said"]
    assert (waits, status) == ([], 429)
    assert 3500 < seconds <= 3600
    for form in ("rfc850", "asctime"):
        assert answers[form] == {"said": [[0], 3], "asked": ["POST", "POST"]}
    for nonsense in ("nonsense", "words"):
        assert answers[nonsense] == {"said": [[], [409, None]], "asked": ["POST"]}


def test_a_model_that_loads_is_waited_for(answers: dict[str, Any]) -> None:
    """It takes as long as it takes: what bounds that is time, not the number of tries."""
    assert answers["loading"] == {"said": [[0.01, 1, 2, 3], 3], "asked": ["POST"] * 5}
    assert answers["impatient"] == {"said": [[0.6], [503, 0.6]], "asked": ["POST"] * 2}
    assert answers["once"] == {"said": [[], [503, 0.01]], "asked": ["POST"]}
    assert answers["often"] == {"said": [[0] * 3, [429, 0]], "asked": ["POST"] * 4}


def test_a_place_or_the_first_try_is_waited_for_as_long(answers: dict[str, Any]) -> None:
    """The pictures of the same key end, however long they take."""
    for case in ("place", "first"):
        assert answers[case] == {"said": [[0.01, 1], 3], "asked": ["POST"] * 3}, case
    assert answers["taken"] == {"said": [[0.6], [429, 0.6]], "asked": ["POST"] * 2}
    # What was lost meanwhile may have run for long: the wait for it begins anew.
    assert answers["again"] == {"said": 3, "asked": ["POST"] * 4}
    # So may have what began and was refused in the end; it counts as a try, as what was lost does.
    assert answers["ran"] == {"said": 3, "asked": ["POST"] * 3}
    assert answers["ranOften"] == {"said": [503], "asked": ["POST"] * 3}


def test_names_in_headers_are_decoded(answers: dict[str, Any]) -> None:
    """As by the Python client, also one that the server has cut within a letter."""
    names = ["foo", "a, b", "caf\xe9", "cut\ufffd"]
    assert answers["named"]["said"] == ["my/\xe9t\xe9 1.5 100%", names]
    assert answers["unnamed"]["said"] == ["", []]


def test_a_key_that_no_header_takes_is_named(answers: dict[str, Any]) -> None:
    """It is no lost connection: nothing is sent, and not tried again."""
    odd = ("2026", "201C", "200B", "1F600", "000A")
    whys = (f"its character U+{code} cannot be sent" for code in odd)
    assert answers["oddKeys"] == [
        {"said": [f"key: {why}", {"key": why}, False], "asked": []} for why in whys
    ]
    message = "Idempotency-Key: its character U+2026 cannot be sent"
    assert answers["oddIdempotency"] == {"said": [message, {}, False], "asked": []}
    assert answers["plainKeys"] == [{"said": 3, "asked": ["POST"]}] * 4


def test_a_pages_address_without_its_query_is_the_servers(answers: dict[str, Any]) -> None:
    urls = ["http://h/", "http://h/", "http://h/a/", "http://h/a/", "http://h/"]
    assert answers["urls"] == urls


def test_a_cancel_ends_the_clients_own_stream(answers: dict[str, Any]) -> None:
    """Also in the pause before another try: it would find no run, and make and pay a new one."""
    error = ["ImageToImageError", 409, False]
    for case, state in (("pause", "cancelled"), ("unknown", "unknown"), ("running", "cancelled")):
        assert answers[case] == {"said": [state, *error], "asked": ["POST", "DELETE"]}, case
    # One that was too late leaves the picture, and so does another cancel.
    assert answers["finished"]["said"] == ["finished", "unknown", 3]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return in_node(ANSWERS, "", tmp_path_factory.mktemp("answers"))


@pytest.mark.slow("browser")
def test_the_client_in_node(real_server: ServerProcess, tmp_path: Path) -> None:
    assert real_server.get("/client.js").content == CLIENT.read_bytes()
    (tmp_path / "in.png").write_bytes(real_server.get("/static/pictures/house.png").content)
    said = in_node(SCRIPT, real_server.url, tmp_path)
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


@pytest.mark.slow("browser")
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
