/** The texts in a picture file, by name. The file may be anyone's: what is out of bounds is left. */

const MOST_TEXT = 4e6; // of one file, inflated

const latin1 = (bytes) => new TextDecoder("latin1").decode(bytes);
const utf8 = (bytes) => new TextDecoder().decode(bytes);
const ascii = (bytes, from, length) => String.fromCharCode(...bytes.subarray(from, from + length));

/** Texts of a PNG, JPEG or WebP, a Map by keyword; EXIF fields have their tags' names. */
export async function textsOf(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  try {
    if (ascii(bytes, 1, 3) === "PNG") return await pngTexts(bytes);
    if (bytes[0] === 0xff && bytes[1] === 0xd8) return jpegTexts(bytes);
    if (ascii(bytes, 0, 4) === "RIFF" && ascii(bytes, 8, 4) === "WEBP") return webpTexts(bytes);
  } catch {
    // Broken: what it may have said is lost, and the server will tell whether it is a picture.
  }
  return new Map();
}

async function pngTexts(bytes) {
  const texts = new Map();
  const view = new DataView(bytes.buffer);
  const room = { left: MOST_TEXT };
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const kind = ascii(bytes, at + 4, 4);
    const data = bytes.subarray(at + 8, at + 8 + length);
    at += 12 + length;
    if (data.length > MOST_TEXT || !["tEXt", "zTXt", "iTXt", "eXIf"].includes(kind)) continue;
    if (kind === "eXIf") {
      for (const [name, text] of exifTexts(data)) texts.set(name, text);
      continue;
    }
    const [key, rest] = split(data);
    const name = latin1(key);
    if (!texts.has(name)) texts.set(name, await pngText(kind, rest, room));
  }
  return texts;
}

function split(data) {
  const at = data.indexOf(0);
  return at < 0 ? [data, new Uint8Array()] : [data.subarray(0, at), data.subarray(at + 1)];
}

async function pngText(kind, rest, room) {
  if (kind === "tEXt") return latin1(rest);
  if (kind === "zTXt") return latin1(await inflated(rest.subarray(1), room));
  const compressed = rest[0] === 1;
  const [, afterLanguage] = split(rest.subarray(2));
  const [, text] = split(afterLanguage);
  return utf8(compressed ? await inflated(text, room) : text);
}

/** Inflate, but no more than there is room for. */
async function inflated(bytes, room) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const parts = [];
  for (const reader = stream.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    room.left -= value.length;
    if (room.left < 0) {
      reader.cancel();
      return new Uint8Array();
    }
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

function jpegTexts(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff; ) {
    const marker = bytes[at + 1];
    const length = view.getUint16(at + 2);
    if (marker === 0xe1 && ascii(bytes, at + 4, 4) === "Exif") {
      return exifTexts(bytes.subarray(at + 10, at + 2 + length));
    }
    if (marker === 0xda) break;
    at += 2 + length;
  }
  return new Map();
}

function webpTexts(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    if (ascii(bytes, at, 4) === "EXIF") {
      let data = bytes.subarray(at + 8, at + 8 + length);
      if (ascii(data, 0, 4) === "Exif") data = data.subarray(6);
      return exifTexts(data);
    }
    at += 8 + length + (length & 1);
  }
  return new Map();
}

const TAGS = { 0x010e: "ImageDescription", 0x010f: "Make", 0x0110: "Model", 0x9286: "UserComment", 0x927c: "MakerNote" };
const EXIF_FOLDER = 0x8769;

function exifTexts(data) {
  const texts = new Map();
  const little = ascii(data, 0, 2) === "II";
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const folder = (start, depth) => {
    const count = view.getUint16(start, little);
    for (let index = 0; index < count; index += 1) {
      const at = start + 2 + 12 * index;
      const tag = view.getUint16(at, little);
      const length = view.getUint32(at + 4, little);
      const value = view.getUint32(at + 8, little);
      if (tag === EXIF_FOLDER && depth === 0) folder(value, 1);
      if (!(tag in TAGS) || length > MOST_TEXT) continue;
      const from = length <= 4 ? at + 8 : value;
      if (from + length > data.length) continue;
      const raw = data.subarray(from, from + length);
      texts.set(TAGS[tag], tag === 0x9286 ? comment(raw, little) : utf8(raw).replace(/\0+$/, ""));
    }
  };
  folder(view.getUint32(4, little), 0);
  return texts;
}

/** EXIF's UserComment: eight bytes name the code. UNICODE is UTF-16 of either order. */
function comment(raw, little) {
  const code = ascii(raw, 0, 8);
  const text = raw.subarray(8);
  if (!code.startsWith("UNICODE")) return utf8(code.startsWith("ASCII") ? text : raw).replace(/\0+$/, "");
  // Writers do not agree on the order, whatever the file's: most letters have a zero half.
  let zeros = 0;
  for (let at = 0; at + 1 < text.length; at += 2) zeros += Number(text[at] === 0) - Number(text[at + 1] === 0);
  const bigEnd = zeros === 0 ? !little : zeros > 0;
  return new TextDecoder(bigEnd ? "utf-16be" : "utf-16le").decode(text).replace(/\0+$/, "");
}
