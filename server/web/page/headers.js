/** Type and size of a picture file by its head, before anything decodes it. */

const ascii = (bytes, from, length) => String.fromCharCode(...bytes.subarray(from, from + length));

/** `{type, width, height}` of a file's bytes, sides null where they are not known; null for what is
 * no picture that the server takes. */
export function pictureHead(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    if (ascii(bytes, 1, 3) === "PNG" && bytes[0] === 0x89) {
      return { type: "PNG", width: view.getUint32(16), height: view.getUint32(20) };
    }
    if (bytes[0] === 0xff && bytes[1] === 0xd8) return { type: "JPEG", ...jpegSize(view) };
    if (/^GIF8[79]a$/.test(ascii(bytes, 0, 6))) {
      return { type: "GIF", width: view.getUint16(6, true), height: view.getUint16(8, true) };
    }
    if (ascii(bytes, 0, 4) === "RIFF" && ascii(bytes, 8, 4) === "WEBP") {
      return { type: "WebP", ...webpSize(view, ascii(bytes, 12, 4)) };
    }
    if (ascii(bytes, 0, 2) === "BM") {
      return { type: "BMP", width: view.getUint32(18, true), height: Math.abs(view.getInt32(22, true)) };
    }
  } catch {
    return null; // Shorter than its own head.
  }
  const unknown = { width: null, height: null };
  if (["II*\0", "MM\0*"].includes(ascii(bytes, 0, 4))) return { type: "TIFF", ...unknown };
  if (ascii(bytes, 4, 4) === "ftyp") {
    const brand = ascii(bytes, 8, 4);
    if (/^avi[fs]$/.test(brand)) return { type: "AVIF", ...unknown };
    if (/^(hei[cmsx]|hev[cmsx]|mif1|msf1)$/.test(brand)) return { type: "HEIC", ...unknown };
  }
  return null;
}

function jpegSize(view) {
  let at = 2;
  while (at + 9 < view.byteLength) {
    if (view.getUint8(at) !== 0xff) return { width: null, height: null };
    const marker = view.getUint8(at + 1);
    // Start of frame, but for the tables that share its range.
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      return { height: view.getUint16(at + 5), width: view.getUint16(at + 7) };
    }
    at += marker === 0xff ? 1 : 2 + view.getUint16(at + 2);
  }
  return { width: null, height: null };
}

function webpSize(view, kind) {
  const uint24 = (at) => view.getUint16(at, true) | (view.getUint8(at + 2) << 16);
  if (kind === "VP8X") return { width: uint24(24) + 1, height: uint24(27) + 1 };
  if (kind === "VP8L") {
    const bits = view.getUint32(21, true);
    return { width: (bits & 0x3fff) + 1, height: ((bits >> 14) & 0x3fff) + 1 };
  }
  return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff };
}
