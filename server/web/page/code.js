/** The request as code that runs: curl, Python, JavaScript and PHP. */

const PATH = "api/generate/basic/imageToImage";

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const php = (text) => `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
const quoted = (text) => JSON.stringify(text);
/** A name in quotes of curl's own: bare ones end at a semicolon or a comma. */
const curl = (name) => `"${name.replace(/["\\]/g, "\\$&")}"`;

/** The name under which the page offers the picture of a seed. */
export const fileName = (seed) => `img2img-${seed}.png`;

/** The names, each unlike all before it, on file systems that know no case too. */
function apart(names) {
  const taken = new Set();
  return names.map((name) => {
    const [, stem, suffix = ""] = /^(.*?)(\.[^.]*)?$/s.exec(name);
    let unique = name;
    for (let number = 2; taken.has(unique.toLowerCase()); number += 1) unique = `${stem}-${number}${suffix}`;
    taken.add(unique.toLowerCase());
    return unique;
  });
}

/** Lines of a comment that say what has to lie beside the code, and where to get what does not yet.
 * No name ends the comment: not by a line's end, nor by PHP's. */
function comment(mark, before, files) {
  const lines = [`${before}in a folder that has ${files.map(({ file }) => file).join(" and ")}`];
  for (const { file, source } of files) if (source) lines.push(`${file}: ${source}`);
  return lines.map((line) => `${mark} ${line.replace(/[\p{Cc}\u2028\u2029]/gu, " ").replaceAll("?>", "? >")}`).join("\n");
}

/**
 * Code for the fields `{name: text}` and the files `{name: {file, source}}` at the server's `base`
 * URL: `file` is the name of a file, `source` says where it comes from if it is on no disk yet.
 */
export function codeFor(language, base, fields, files, needsKey) {
  const names = apart([...Object.values(files).map(({ file }) => file), fileName(fields.seed)]);
  const named = Object.entries(files).map(([field, { source }], index) => ({ field, file: names[index], source }));
  return WRITERS[language](base + PATH, Object.entries(fields), named, names.at(-1), needsKey);
}

const WRITERS = {
  curl(url, fields, files, output, needsKey) {
    const lines = [`${comment("#", "", files)}\nanswer=$(curl -sS ${shell(url)}`];
    if (needsKey) lines.push('-H "Authorization: $API_KEY"');
    for (const { field, file } of files) lines.push(`-F ${shell(`${field}=@${curl(file)}`)}`);
    // Not -F, which reads a file where a value begins with @ or <.
    for (const [name, value] of fields) lines.push(`--form-string ${shell(`${name}=${value}`)}`);
    return `${lines.join(" \\\n  ")})
image=$(printf %s "$answer" | sed -n 's/.*"image":"\\([^"]*\\)".*/\\1/p')
if [ "$image" ]; then printf %s "$image" | base64 -d > ${shell(output)}; else printf '%s\\n' "$answer" >&2; false; fi
`;
  },

  python(url, fields, files, output, needsKey) {
    return `${comment("#", "", files)}
import base64
${needsKey ? "import os\n" : ""}
import requests

response = requests.post(
    ${quoted(url)},${needsKey ? '\n    headers={"Authorization": os.environ["API_KEY"]},' : ""}
    files={
${files.map(({ field, file }) => `        ${quoted(field)}: open(${quoted(file)}, "rb"),\n`).join("")}    },
    data={
${fields.map(([name, value]) => `        ${quoted(name)}: ${quoted(value)},\n`).join("")}    },
    timeout=600,
)
answer = response.json()
if answer["code"] != 0:
    raise SystemExit(answer["message"])
with open(${quoted(output)}, "wb") as file:
    file.write(base64.b64decode(answer["data"]["image"]))
print("seed", answer["data"]["seed"])
`;
  },

  javascript(url, fields, files, output, needsKey) {
    return `${comment("//", "Node 20 or later, ", files)}
// in a browser take the File of an <input type="file"> instead of openAsBlob
import { openAsBlob } from "node:fs";
import { writeFile } from "node:fs/promises";

const form = new FormData();
${files.map(({ field, file }) => `form.append(${quoted(field)}, await openAsBlob(${quoted(file)}), ${quoted(file)});\n`).join("")}${fields.map(([name, value]) => `form.append(${quoted(name)}, ${quoted(value)});\n`).join("")}
const response = await fetch(${quoted(url)}, {
  method: "POST",${needsKey ? "\n  headers: { Authorization: process.env.API_KEY }," : ""}
  body: form,
});
const { code, message, data } = await response.json();
if (code !== 0) throw new Error(message);
await writeFile(${quoted(output)}, Buffer.from(data.image, "base64"));
console.log("seed", data.seed);
`;
  },

  php(url, fields, files, output, needsKey) {
    return `<?php
${comment("//", "", files)}
$curl = curl_init(${php(url)});
curl_setopt_array($curl, [
    CURLOPT_RETURNTRANSFER => true,${needsKey ? "\n    CURLOPT_HTTPHEADER => ['Authorization: ' . getenv('API_KEY')]," : ""}
    CURLOPT_POSTFIELDS => [
${files.map(({ field, file }) => `        ${php(field)} => new CURLFile(${php(file)}),\n`).join("")}${fields.map(([name, value]) => `        ${php(name)} => ${php(value)},\n`).join("")}    ],
]);
$body = (string) curl_exec($curl);
$answer = json_decode($body, true);
if (($answer['code'] ?? null) !== 0) {
    file_put_contents('php://stderr', ($answer['message'] ?? curl_error($curl) ?: $body) . PHP_EOL);
    exit(1);
}
file_put_contents(${php(output)}, base64_decode($answer['data']['image']));
echo 'seed ', $answer['data']['seed'], PHP_EOL;
`;
  },
};

export const LANGUAGES = { curl: "curl", python: "Python", javascript: "JavaScript", php: "PHP" };
