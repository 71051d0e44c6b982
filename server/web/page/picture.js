/** The picture to start from: checked by its head, sent as the bytes that came. */

import { newKey } from "../../client.js";
import { pictureHead } from "./headers.js";

const MOST_PIXELS = 100e6;
const HEAD_BYTES = 512 * 1024; // A JPEG's size comes after its EXIF, profiles and thumbnails.
const TAKEN = "PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF and HEIC";

/** Why a file is not taken; the message is for the user. */
export class NotTaken extends Error {}

/** A picture `{id, blob, name, kind, type, width, height}`; sides are upright, or null where this
 * browser cannot show it. `kind` is file, pasted, sample, noise or result. Throws NotTaken. */
export async function readPicture(blob, name, kind, maxBytes) {
  if (blob.size > maxBytes) {
    const taken = (maxBytes / 2 ** 20).toFixed(0);
    throw new NotTaken(`${name} has ${(blob.size / 2 ** 20).toFixed(1)} MiB; up to ${taken} MiB are taken.`);
  }
  const bytes = await blob.arrayBuffer().catch(() => {
    throw new NotTaken(`${name} cannot be read: is it a folder, or was it moved?`);
  });
  const head = pictureHead(new Uint8Array(bytes, 0, Math.min(bytes.byteLength, HEAD_BYTES)));
  if (!head) throw new NotTaken(`${name} is no picture that can be used; ${TAKEN} are taken.`);
  if (head.width * head.height > MOST_PIXELS) {
    throw new NotTaken(`${name} is ${head.width} × ${head.height}; up to 100 megapixels are taken.`);
  }
  // A copy: the file itself may be changed or gone by the time that it is sent.
  const copy = new Blob([bytes], { type: blob.type });
  const size = await shownSize(copy);
  const { type, alpha = false } = head;
  return { id: newKey(), blob: copy, name, kind, type, alpha, width: null, height: null, ...size };
}

/** Whether nothing of a picture stays, whatever image strength is asked for: there is none. */
export const isNoise = (picture) => picture?.kind === "noise";

/** Upright width and height as the browser shows them (EXIF applied), or null. */
export async function shownSize(blob) {
  const url = URL.createObjectURL(blob);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    return { width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** A small JPEG of a picture, for the strip; the picture itself where it cannot be drawn. */
export async function thumbnail(blob, side = 192) {
  try {
    const bitmap = await createImageBitmap(blob);
    const scale = side / Math.max(bitmap.width, bitmap.height);
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return await new Promise((resolve) => canvas.toBlob((made) => resolve(made ?? blob), "image/jpeg", 0.85));
  } catch {
    return blob;
  }
}

/** The box of a `width` x `height` picture that a centre crop to `size` keeps, as fractions. */
export function keptBox({ width, height }, size) {
  const scale = Math.max(size.width / width, size.height / height);
  const [w, h] = [size.width / scale / width, size.height / scale / height];
  return { left: (1 - w) / 2, top: (1 - h) / 2, width: w, height: h };
}
