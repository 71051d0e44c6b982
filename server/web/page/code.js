/** The request as code that runs: curl, Python, JavaScript and PHP. */

const PATH = "api/generate/basic/imageToImage";

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const php = (text) => `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
const quoted = (text) => JSON.stringify(text);
/** A plain name in this folder, whatever the picture was called. */
const plain = (name) => name.replace(/[^\w.-]+/g, "_").replace(/^[.-]+/, "") || "input.png";

/** What has to lie beside the code: only the names are known here. */
const needed = (files) => `in a folder that has ${files.map(([, name]) => name).join(" and ")}`;

/** Code for the fields `{name: text}`, files `{name: file name}` at the server's `base` URL. */
export function codeFor(language, base, fields, files, needsKey) {
  const named = Object.entries(files).map(([field, name]) => [field, plain(name)]);
  return WRITERS[language](base + PATH, Object.entries(fields), named, needsKey);
}

const WRITERS = {
  curl(url, fields, files, needsKey) {
    const lines = [`# ${needed(files)}\nanswer=$(curl -sS ${shell(url)}`];
    if (needsKey) lines.push('-H "Authorization: $API_KEY"');
    for (const [name, file] of files) lines.push(`-F ${shell(`${name}=@${file}`)}`);
    // Not -F, which reads a file where a value begins with @ or <.
    for (const [name, value] of fields) lines.push(`--form-string ${shell(`${name}=${value}`)}`);
    return `${lines.join(" \\\n  ")})
image=$(printf %s "$answer" | sed -n 's/.*"image":"\\([^"]*\\)".*/\\1/p')
if [ "$image" ]; then printf %s "$image" | base64 -d > result.png; else printf '%s\\n' "$answer" >&2; false; fi
`;
  },

  python(url, fields, files, needsKey) {
    return `# ${needed(files)}
import base64
${needsKey ? "import os\n" : ""}
import requests

response = requests.post(
    ${quoted(url)},${needsKey ? '\n    headers={"Authorization": os.environ["API_KEY"]},' : ""}
    files={
${files.map(([name, file]) => `        ${quoted(name)}: open(${quoted(file)}, "rb"),\n`).join("")}    },
    data={
${fields.map(([name, value]) => `        ${quoted(name)}: ${quoted(value)},\n`).join("")}    },
    timeout=600,
)
answer = response.json()
if answer["code"] != 0:
    raise SystemExit(answer["message"])
with open("result.png", "wb") as file:
    file.write(base64.b64decode(answer["data"]["image"]))
print("seed", answer["data"]["seed"])
`;
  },

  javascript(url, fields, files, needsKey) {
    return `// Node 20 or later, ${needed(files)}; in a browser take the File of an <input type="file"> instead of openAsBlob.
import { openAsBlob } from "node:fs";
import { writeFile } from "node:fs/promises";

const form = new FormData();
${files.map(([name, file]) => `form.append(${quoted(name)}, await openAsBlob(${quoted(file)}), ${quoted(file)});\n`).join("")}${fields.map(([name, value]) => `form.append(${quoted(name)}, ${quoted(value)});\n`).join("")}
const response = await fetch(${quoted(url)}, {
  method: "POST",${needsKey ? "\n  headers: { Authorization: process.env.API_KEY }," : ""}
  body: form,
});
const { code, message, data } = await response.json();
if (code !== 0) throw new Error(message);
await writeFile("result.png", Buffer.from(data.image, "base64"));
console.log("seed", data.seed);
`;
  },

  php(url, fields, files, needsKey) {
    return `<?php
// ${needed(files)}
$curl = curl_init(${php(url)});
curl_setopt_array($curl, [
    CURLOPT_RETURNTRANSFER => true,${needsKey ? "\n    CURLOPT_HTTPHEADER => ['Authorization: ' . getenv('API_KEY')]," : ""}
    CURLOPT_POSTFIELDS => [
${files.map(([name, file]) => `        ${php(name)} => new CURLFile(${php(file)}),\n`).join("")}${fields.map(([name, value]) => `        ${php(name)} => ${php(value)},\n`).join("")}    ],
]);
$body = (string) curl_exec($curl);
$answer = json_decode($body, true);
if (($answer['code'] ?? null) !== 0) {
    file_put_contents('php://stderr', ($answer['message'] ?? curl_error($curl) ?: $body) . PHP_EOL);
    exit(1);
}
file_put_contents('result.png', base64_decode($answer['data']['image']));
echo 'seed ', $answer['data']['seed'], PHP_EOL;
`;
  },
};

export const LANGUAGES = { curl: "curl", python: "Python", javascript: "JavaScript", php: "PHP" };
