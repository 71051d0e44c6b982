/** The texts in a picture file, by name. The file may be anyone's: what is out of bounds is left. */

const MOST_TEXT = 4e6; // of one file, inflated or of EXIF
const MOST_PARTS = 1000; // of one file that are read, and entries of a folder of EXIF

const latin1 = (bytes) => new TextDecoder("latin1").decode(bytes);
const utf8 = (bytes) => new TextDecoder().decode(bytes);
const ascii = (bytes, from, length) => String.fromCharCode(...bytes.subarray(from, from + length));

/** Texts of a PNG, JPEG or WebP, a Map by keyword; EXIF fields have their tags' names. */
export async function textsOf(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const texts = new Map();
  const room = { left: MOST_TEXT };
  let parts = 0;
  for (const { kind, data } of partsOf(bytes)) {
    if ((parts += 1) > MOST_PARTS) break;
    try {
      if (kind === "EXIF") exifTexts(data, texts, room);
      else await pngText(kind, data, texts, room);
    } catch {
      // This part is damaged or too much: what the others say is not lost.
    }
  }
  return texts;
}

/** The parts of a file that may have texts: `{kind, data}`. */
function partsOf(bytes) {
  if (ascii(bytes, 1, 3) === "PNG") return pngParts(bytes);
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return jpegParts(bytes);
  if (ascii(bytes, 0, 4) === "RIFF" && ascii(bytes, 8, 4) === "WEBP") return webpParts(bytes);
  return [];
}

const PNG_KINDS = { tEXt: "tEXt", zTXt: "zTXt", iTXt: "iTXt", eXIf: "EXIF" };

function* pngParts(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const kind = ascii(bytes, at + 4, 4);
    if (length <= MOST_TEXT && Object.hasOwn(PNG_KINDS, kind)) yield { kind: PNG_KINDS[kind], data: bytes.subarray(at + 8, at + 8 + length) };
    at += 12 + length;
  }
}

function* jpegParts(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda; ) {
    const end = at + 2 + view.getUint16(at + 2);
    if (bytes[at + 1] === 0xe1 && ascii(bytes, at + 4, 4) === "Exif") yield { kind: "EXIF", data: bytes.subarray(at + 10, end) };
    at = end;
  }
}

function* webpParts(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    if (ascii(bytes, at, 4) === "EXIF") {
      const data = bytes.subarray(at + 8, at + 8 + length);
      yield { kind: "EXIF", data: ascii(data, 0, 4) === "Exif" ? data.subarray(6) : data };
    }
    at += 8 + length + (length & 1);
  }
}

function split(data) {
  const at = data.indexOf(0);
  return at < 0 ? [data, new Uint8Array()] : [data.subarray(0, at), data.subarray(at + 1)];
}

async function pngText(kind, data, texts, room) {
  const [key, rest] = split(data);
  const name = latin1(key);
  if (texts.has(name)) return;
  if (kind === "tEXt") texts.set(name, latin1(rest));
  else if (kind === "zTXt") texts.set(name, latin1(await inflated(rest.subarray(1), room)));
  else {
    const [, afterLanguage] = split(rest.subarray(2));
    const [, text] = split(afterLanguage);
    texts.set(name, utf8(rest[0] === 1 ? await inflated(text, room) : text));
  }
}

function spend(room, length) {
  room.left -= length;
  if (room.left < 0) throw new RangeError("The file has too much text");
}

/** Inflate, but no more than there is room for. */
async function inflated(bytes, room) {
  spend(room, 0);
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const parts = [];
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      spend(room, read.value.length);
      parts.push(read.value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

const TAGS = { 0x010e: "ImageDescription", 0x010f: "Make", 0x0110: "Model", 0x9286: "UserComment", 0x927c: "MakerNote" };
const EXIF_FOLDER = 0x8769;

/** Read the first folder and the one EXIF folder that it names. Of entries with one tag the first counts. */
function exifTexts(data, texts, room) {
  const little = ascii(data, 0, 2) === "II";
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const folders = [view.getUint32(4, little)];
  for (const start of folders) {
    const count = Math.min(view.getUint16(start, little), MOST_PARTS);
    for (let at = start + 2; at < start + 2 + 12 * count; at += 12) {
      const tag = view.getUint16(at, little);
      const length = view.getUint32(at + 4, little);
      const value = view.getUint32(at + 8, little);
      if (tag === EXIF_FOLDER && folders.length === 1) folders.push(value);
      const from = length <= 4 ? at + 8 : value;
      if (!(tag in TAGS) || texts.has(TAGS[tag]) || from + length > data.length) continue;
      spend(room, length);
      const raw = data.subarray(from, from + length);
      texts.set(TAGS[tag], tag === 0x9286 ? comment(raw, little) : unpadded(utf8(raw)));
    }
  }
}

/** Without the zeros at its end; a regular expression takes the square of many zeros elsewhere. */
function unpadded(text) {
  let end = text.length;
  while (end > 0 && text.charCodeAt(end - 1) === 0) end -= 1;
  return text.slice(0, end);
}

/** EXIF's UserComment: eight bytes name the code. UNICODE is UTF-16 of either order. */
function comment(raw, little) {
  const code = ascii(raw, 0, 8);
  const text = raw.subarray(8);
  if (!code.startsWith("UNICODE")) return unpadded(utf8(code.startsWith("ASCII") ? text : raw));
  // Writers do not agree on the order, whatever the file's: most letters have a zero half.
  let zeros = 0;
  for (let at = 0; at + 1 < text.length; at += 2) zeros += Number(text[at] === 0) - Number(text[at + 1] === 0);
  const bigEnd = zeros === 0 ? !little : zeros > 0;
  return unpadded(new TextDecoder(bigEnd ? "utf-16be" : "utf-16le").decode(text));
}
