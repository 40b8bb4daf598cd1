// The panels beneath the layout: versions by replica, start-up, events, and the table of a sweep.

import { $, COLOURS, clock, css, el, hideTip, number, seconds, showTip, spark, svg } from "./draw.js";

const MOST_ROWS = 40;

export function drawVersions(data) {
  const host = $("versions");
  const newest = data.versions.at(-1)?.[0] ?? Math.max(-1, ...data.replicas.map((r) => r[2] ?? -1));
  $("versions-note").textContent = newest >= 0 ? `newest ${newest.toLocaleString("en")}, taken by each replica` : "";
  if (!data.replicas.length || newest < 0) { host.replaceChildren(el("div", { class: "empty", text: "no version was published yet" })); return; }
  const took = data.versions.map(([version, missed]) => [version, new Set(missed)]);
  // Of many replicas, those that are behind or not ready come first.
  const lag = (r) => r[2] == null ? Infinity : newest - r[2];
  const rows = data.replicas.length > MOST_ROWS ? [...data.replicas].sort((a, b) => lag(b) - lag(a) || a[0] - b[0]).slice(0, MOST_ROWS) : data.replicas;
  const grid = el("div", { class: "lags" });
  for (const row of rows) {
    const [replica, word, version] = row;
    const who = el("span", { class: "who" }, el("i", { class: word }), `inference-${replica}`);
    const width = 600, cell = width / Math.max(took.length, 20);
    const strip = svg("svg", { viewBox: `0 0 ${width} 14`, preserveAspectRatio: "none", height: 14 });
    took.forEach(([, missed], i) => strip.append(svg("rect", { x: i * cell, y: 1, width: Math.max(cell - 1.5, 1), height: 12, rx: 1.5, fill: missed.has(replica) ? css("--bad-pale") : css("--good") })));
    strip.addEventListener("mousemove", (event) => {
      const box = strip.getBoundingClientRect(), i = Math.floor((event.clientX - box.left) / box.width * width / cell);
      if (took[i]) showTip(event, `version ${took[i][0]}\ninference-${replica} ${took[i][1].has(replica) ? "did not take it" : "took it"}`); else hideTip();
    });
    strip.addEventListener("mouseleave", hideTip);
    const behind = version == null ? null : newest - version;
    const text = version == null ? word : behind ? `${version}, ${behind} behind` : `${version}`;
    grid.append(who, strip, el("span", { class: behind ? "at behind" : "at", text: !data.is_over && word !== "ready" && version != null ? `${text}, ${word}` : text }));
  }
  const scrolled = host.firstElementChild?.scrollTop ?? 0;
  host.replaceChildren(grid);
  grid.scrollTop = scrolled;
  if (rows.length < data.replicas.length) host.append(el("div", { class: "empty", text: `and ${data.replicas.length - rows.length} more, all up to date or less far behind` }));
}

export function drawWaterfall(data) {
  const host = $("waterfall"), bars = data.waterfall;
  $("startup-note").textContent = data.startup_s != null ? `${seconds(data.startup_s)} to the first step` : data.is_over ? "" : "going on";
  if (!bars.length) { host.replaceChildren(el("div", { class: "empty", text: "nothing has started yet" })); return; }
  const end = (bar) => bar.end ?? data.ended ?? data.now;
  const t0 = Math.min(data.began ?? Infinity, ...bars.map((b) => b.begin)), t1 = Math.max(...bars.map(end), t0 + 1);
  const width = Math.max(host.clientWidth, 300), left = Math.min(190, width * 0.36), right = 66, row = 19, top = 4;
  const X = (t) => left + (t - t0) / (t1 - t0) * (width - left - right);
  const names = [...new Set(bars.map((b) => b.phase))];
  const root = svg("svg", { viewBox: `0 0 ${width} ${top + bars.length * row + 22}`, height: top + bars.length * row + 22 });
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600].find((s) => (t1 - t0) / s <= 5) ?? 86400;
  for (let t = 0; t <= t1 - t0; t += step) root.append(svg("line", { class: "grid", x1: X(t0 + t), x2: X(t0 + t), y1: top, y2: top + bars.length * row }), svg("text", { x: X(t0 + t), y: top + bars.length * row + 15, "text-anchor": "middle", text: step < 1 ? `${t.toFixed(1)} s` : step < 60 ? `${t} s` : step < 3600 ? `${t / 60} min` : `${t / 3600} h` }));
  bars.forEach((bar, i) => {
    const y = top + i * row, colour = COLOURS[names.indexOf(bar.phase) % COLOURS.length], isOpen = bar.end == null;
    const label = bar.who === "job" ? bar.phase : `${bar.phase} · ${bar.who}`;
    const shown = label.length > left / 6.1 ? `${label.slice(0, Math.floor(left / 6.1) - 1)}…` : label;
    const rect = svg("rect", { x: X(bar.begin), y: y + 3, width: Math.max(X(end(bar)) - X(bar.begin), 2), height: row - 7, rx: 3, fill: colour, opacity: isOpen ? 0.45 : 0.9 });
    if (isOpen) { rect.setAttribute("stroke", colour); rect.setAttribute("stroke-dasharray", "4 3"); }
    const group = svg("g", {}, svg("text", { x: left - 8, y: y + row - 6, "text-anchor": "end", text: shown }), rect, svg("text", { x: X(end(bar)) + 6, y: y + row - 6, class: "ink", text: seconds(end(bar) - bar.begin) }));
    group.addEventListener("mousemove", (event) => showTip(event, `${label}\n${clock(bar.begin)} to ${isOpen ? (data.is_over ? "the end; never finished" : "now") : clock(bar.end)}, ${seconds(end(bar) - bar.begin)}${bar.count > 1 && bar.first_end ? `\nthe first was done after ${seconds(bar.first_end - bar.begin)}` : ""}`));
    group.addEventListener("mouseleave", hideTip);
    root.append(group);
  });
  host.replaceChildren(root);
}

export function drawTimeline(data) {
  const items = [...data.timeline].reverse().map(([time, , text, isBad]) => el("li", { class: isBad ? "bad" : "" }, el("time", { text: clock(time), title: new Date(time * 1000).toLocaleString() }), el("span", { text })));
  $("timeline").replaceChildren(...(items.length ? items : [el("div", { class: "empty", text: "nothing yet" })]));
}

export function drawFailure(data) {
  const host = $("failure"), failure = data.failure;
  host.hidden = !failure;
  if (!failure) return;
  host.replaceChildren(el("h2", { text: `Cause: ${failure.text}` }));
  if (failure.tail.length) host.append(el("pre", { text: failure.tail.join("\n") }));
  if (failure.victims.length) host.append(el("p", {}, el("small", { text: `failed because of it: ${failure.victims.join("; ")}${failure.more ? ` and ${failure.more} more` : ""}` })));
}

// Overrides that all runs share tell nothing; the others become columns.
export function drawSweep(data, colourOf, wordClass) {
  const parsed = data.runs.map((run) => Object.fromEntries(run.overrides.map((o) => { const [k, ...v] = o.replace(/^\++/, "").split("="); return [k, v.join("=")]; })));
  const keys = [...new Set(parsed.flatMap((p) => Object.keys(p)))].filter((key) => new Set(parsed.map((p) => p[key])).size > 1);
  const best = Math.max(...data.runs.map((r) => r.reward ?? -Infinity));
  const head = el("tr", {}, el("th", { text: "run" }), ...keys.map((key) => el("th", { text: key })), el("th", { text: "state" }), el("th", { class: "num", text: "nodes" }), el("th", { class: "num", text: "step" }), el("th", { class: "num", text: "reward" }), el("th", { text: "" }), el("th", { text: "job" }));
  const rows = data.runs.map((run, i) => {
    const key = el("i", { class: "key" });
    key.style.background = run.curve.length ? colourOf(i) : "transparent";
    const reward = el("td", { class: "num", text: number(run.reward) });
    if (run.reward === best) reward.style.fontWeight = 700;
    return el("tr", { "data-run": run.name },
      el("td", {}, key, el("a", { href: `?run=${encodeURIComponent(run.name)}`, text: run.name })),
      ...keys.map((k) => el("td", {}, el("code", { text: parsed[i][k] ?? "–" }))),
      el("td", {}, el("span", { class: `word ${wordClass(run.word)}`, text: run.word + (run.is_certain ? "" : "?") })),
      el("td", { class: "num", text: run.nodes ?? "–" }),
      el("td", { class: "num", text: run.step == null ? "–" : run.steps ? `${run.step} / ${run.steps}` : String(run.step) }),
      reward, el("td", {}, spark(run.curve, colourOf(i))), el("td", { text: run.job ?? "local" }));
  });
  $("sweep-table").replaceChildren(el("thead", {}, head), el("tbody", {}, ...rows));
}
