/** Type and size of a picture file by its head, before anything decodes it. */

const ascii = (bytes, from, length) => String.fromCharCode(...bytes.subarray(from, from + length));

/** `{type, width, height, alpha}` of a file's bytes, sides null where they are not known; `alpha` where
 * it is made for transparent parts; null for what is no picture that the server takes. */
export function pictureHead(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    if (ascii(bytes, 1, 3) === "PNG" && bytes[0] === 0x89) {
      return { type: "PNG", width: view.getUint32(16), height: view.getUint32(20), alpha: bytes[25] >= 4 };
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
    if (/^avi[fs]$/.test(brand)) return { type: "AVIF", ...largestItem(bytes, view) };
    if (/^(hei[cmsx]|hev[cmsx]|mif1|msf1)$/.test(brand)) return { type: "HEIC", ...largestItem(bytes, view) };
  }
  return null;
}

/** The largest size that an "ispe" box of a HEIF file tells: it has one for each picture in it. */
function largestItem(bytes, view) {
  let largest = { width: null, height: null };
  for (let at = bytes.indexOf(0x69, 12); at > 0 && at + 16 <= bytes.length; at = bytes.indexOf(0x69, at + 1)) {
    if (ascii(bytes, at, 4) !== "ispe") continue;
    const [width, height] = [view.getUint32(at + 8), view.getUint32(at + 12)];
    if (width * height > largest.width * largest.height) largest = { width, height };
  }
  return largest;
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
  if (kind === "VP8X") return { width: uint24(24) + 1, height: uint24(27) + 1, alpha: (view.getUint8(20) & 0x10) !== 0 };
  if (kind === "VP8L") {
    const bits = view.getUint32(21, true);
    return { width: (bits & 0x3fff) + 1, height: ((bits >> 14) & 0x3fff) + 1, alpha: (bits & (1 << 28)) !== 0 };
  }
  return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff };
}
