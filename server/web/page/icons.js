/** Icons as SVG: the signs of emoji fonts are not on every machine. */

const PATHS = {
  dice: "M6 4h12a2 2 0 0 1 2 2v12a2 2 0 0 1-2 2H6a2 2 0 0 1-2-2V6a2 2 0 0 1 2-2zM8.5 8.5h.01M15.5 8.5h.01M12 12h.01M8.5 15.5h.01M15.5 15.5h.01",
  locked: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  open: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 6.6-1.6",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M19 5l-2 2M7 17l-2 2",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z",
  brush: "M4 20c2.5 0 4-1 4-3 0-1.5 1-2.5 2.3-2.5L20 4.8 19.2 4 9.5 13.7M10.3 14.5c1 .2 1.6.8 1.7 1.7",
  eraser: "M5 15.5 14 6l5 5-8.5 9H8zM9.5 11l5 5M8 20h11",
  hand: "M8 12V6.5a1.5 1.5 0 0 1 3 0V11V5a1.5 1.5 0 0 1 3 0v6V6.5a1.5 1.5 0 0 1 3 0V14c0 4-2 6-5 6s-4-1-5.500-3.500L4.500 13a1.500 1.500 0 0 1 2.500-1.500z",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  undo: "M8 5 4 9l4 4M4 9h10a5 5 0 0 1 0 10h-4",
  redo: "m16 5 4 4-4 4M20 9H10a5 5 0 0 0 0 10h4",
  invert: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16zM12 4v16M13 5l6 3M13 9h7M13 13h7M13 17h5",
  clear: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v6M13.5 11v6",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  save: "M12 4v11M8 11l4 4 4-4M4 17v3h16v-3",
  load: "M12 15V4M8 8l4-4 4 4M4 17v3h16v-3",
};

/** An SVG element, unseen by screen readers: its button has the name. */
export function icon(name) {
  const SVG = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}
