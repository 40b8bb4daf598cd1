// Small drawing tools: elements, charts as SVG, one tooltip. No text of a run is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";
export const COLOURS = ["#2f6fde", "#d98200", "#12805c", "#b4478f", "#7a4fc9", "#c8372d", "#0e8fa8", "#8a6d3b"];
export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const $ = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) key === "text" ? (node.textContent = value) : node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) key === "text" ? (node.textContent = value) : node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export const seconds = (s) => s == null ? "–" : s < 1 ? `${s.toFixed(2)} s` : s < 100 ? `${s.toFixed(1)} s` : s < 3600 ? `${Math.floor(s / 60)} min ${String(Math.floor(s % 60)).padStart(2, "0")} s` : `${Math.floor(s / 3600)} h ${String(Math.floor(s / 60) % 60).padStart(2, "0")} min`;
export const clock = (t) => new Date(t * 1000).toLocaleTimeString([], { hour12: false });
export const number = (v) => v == null ? "–" : Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : v === 0 ? "0" : Math.abs(v) < 1e-3 ? v.toExponential(1) : String(+v.toPrecision(3));

const tip = $("tip");
export function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - box.width - 8)}px`;
  tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18}px`;
}
export const hideTip = () => { tip.hidden = true; };

function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw - 1e-12);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) found.push(Math.abs(v) < step * 1e-6 ? 0 : v);
  return found;
}

function smooth(points, window) {
  let sum = 0;
  return points.map(([x, y], i) => {
    sum += y - (i >= window ? points[i - window][1] : 0);
    return [x, sum / Math.min(i + 1, window)];
  });
}

// Curves over steps. `series`: [{name, colour, points: [[x, y], ...]}]; each is drawn faintly, and smoothed when it is long.
export function lines(host, series, { height = 260, small = false, xmax = null } = {}) {
  const drawn = series.filter((s) => s.points.length);
  if (!drawn.length) { host.replaceChildren(el("div", { class: "empty", text: "no step was reported yet" })); return; }
  const width = Math.max(host.clientWidth, 120), left = small ? 4 : 44, bottom = small ? 4 : 24, top = 8, right = small ? 4 : 12;
  const all = drawn.flatMap((s) => s.points);
  const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  const fold = (values, f) => values.reduce((a, b) => f(a, b));
  let [x0, x1] = [fold(xs, Math.min), Math.max(fold(xs, Math.max), xmax ?? -Infinity)];
  let [y0, y1] = [fold(ys, Math.min), fold(ys, Math.max)];
  if (x1 === x0) x1 = x0 + 1;
  const margin = (y1 - y0) * 0.06 || Math.abs(y1) * 0.1 || 1;
  if (y0 >= 0 && y0 < (y1 - y0)) y0 = 0; else y0 -= margin;
  y1 += margin;
  const X = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const Y = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - bottom - top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  if (!small) {
    for (const y of ticks(y0, y1, 5)) root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: Y(y), y2: Y(y) }), svg("text", { x: left - 7, y: Y(y) + 4, "text-anchor": "end", text: number(y) }));
    for (const x of ticks(x0, x1, Math.max(width / 110, 2))) if (Number.isInteger(x)) root.append(svg("text", { x: X(x), y: height - 6, "text-anchor": "middle", text: x.toLocaleString("en") }));
  } else {
    root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: Y(y0), y2: Y(y0) }));
  }
  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
  for (const s of drawn) {
    const window = Math.min(Math.floor(s.points.length / 12), 50);
    const isLong = window > 1;
    if (isLong && drawn.length < 9) root.append(svg("path", { class: "raw", d: path(s.points), stroke: s.colour }));
    const curve = isLong ? smooth(s.points, window) : s.points;
    root.append(svg("path", { class: "curve", d: path(curve), stroke: s.colour, "stroke-width": small || drawn.length > 8 ? 1.5 : 2, opacity: s.faint ? 0.35 : 1 }));
    const [x, y] = curve.at(-1);
    root.append(svg("circle", { class: "dot", cx: X(x), cy: Y(y), r: small ? 2.5 : 3.5, fill: s.colour }));
  }
  const cursor = svg("line", { class: "grid", y1: top, y2: height - bottom, visibility: "hidden" });
  root.append(cursor);
  root.addEventListener("mousemove", (event) => {
    const box = root.getBoundingClientRect();
    const at = x0 + ((event.clientX - box.left) * (width / box.width) - left) / (width - left - right) * (x1 - x0);
    const near = drawn.map((s) => [s, s.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)]);
    cursor.setAttribute("x1", X(near[0][1][0])); cursor.setAttribute("x2", X(near[0][1][0])); cursor.setAttribute("visibility", "visible");
    showTip(event, `step ${near[0][1][0]}\n${near.slice(0, 12).map(([s, p]) => `${s.name} ${number(p[1])}`).join("\n")}`);
  });
  root.addEventListener("mouseleave", () => { cursor.setAttribute("visibility", "hidden"); hideTip(); });
  host.replaceChildren(root);
}

export function spark(points, colour) {
  const root = svg("svg", { viewBox: "0 0 110 24", preserveAspectRatio: "none" });
  if (points.length > 1) {
    const ys = points.map((p) => p[1]), low = Math.min(...ys), high = Math.max(...ys), x0 = points[0][0], x1 = points.at(-1)[0];
    root.append(svg("path", { class: "curve", stroke: colour, "stroke-width": 1.5, d: points.map(([x, y], i) => `${i ? "L" : "M"}${2 + (x - x0) / (x1 - x0 || 1) * 106} ${22 - (y - low) / (high - low || 1) * 20}`).join("") }));
  }
  return root;
}
