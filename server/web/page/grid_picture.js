/** One PNG of a grid with its labels. */

const MOST_SIDE = 8192;
const MARGIN = 8;

/** Draw the plan's cells; those that are missing stay white. */
export async function gridPicture({ axes: [across, down], cells }) {
  const made = cells.find(({ record }) => record).record;
  const columns = across.values.length;
  const rows = down.values.length;
  const scale = Math.min(1, MOST_SIDE / ((columns + 1) * made.width), MOST_SIDE / ((rows + 1) * made.height));
  const [width, height] = [Math.round(made.width * scale), Math.round(made.height * scale)];
  const font = Math.max(13, Math.round(Math.min(width, height) / 18));
  const left = down.field ? Math.max(120, Math.round(width / 2)) : MARGIN;
  const top = 3 * font;
  const canvas = document.createElement("canvas");
  canvas.width = left + columns * (width + MARGIN);
  canvas.height = top + rows * (height + MARGIN);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#111";
  context.font = `${font}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  const label = (field, value, x, y, room) => context.fillText(`${field.label}: ${value || "none"}`, x, y, room);
  across.values.forEach((value, column) => label(across.field, value, left + column * (width + MARGIN) + width / 2, top / 2, width));
  if (down.field) down.values.forEach((value, row) => label(down.field, value, left / 2, top + row * (height + MARGIN) + height / 2, left - 2 * MARGIN));
  for (const [index, { record }] of cells.entries()) {
    if (!record) continue;
    const bitmap = await createImageBitmap(record.picture);
    context.drawImage(bitmap, left + (index % columns) * (width + MARGIN), top + Math.floor(index / columns) * (height + MARGIN), width, height);
    bitmap.close();
  }
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
