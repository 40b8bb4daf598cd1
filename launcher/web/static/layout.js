// The layout: cards with every GPU for few nodes; for many, one small square per GPU, drawn on a canvas.

import { $, css, el, hideTip, showTip } from "./draw.js";

const MOST_CARDS = 24;
const WORDS = { w: "waiting", s: "starting", r: "running", e: "ended", f: "failed first", v: "failed after it", l: "lost" };
let cards = null, drawnFor = null, model = null;

export function setLayout(layout) { model = layout; drawnFor = null; }

export function drawLayout(data) {
  if (!model) return;
  const trainers = model.nodes.filter((n) => n.role === "trainer").length;
  const engines = model.nodes.filter((n) => n.role === "inference").length;
  const spares = model.nodes.length - trainers - engines;
  const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
  const ready = data.replicas.filter((r) => r[1] === "ready").length;
  $("layout-note").textContent = [count(model.nodes.length, "node"), `${trainers} train`, `${engines} infer`, ...(spares ? [count(spares, "spare")] : []), data.is_over ? count(model.replicas, "replica") : `${ready}/${model.replicas} replicas ready`].join(" · ");
  legend();
  model.nodes.length <= MOST_CARDS ? drawCards(data) : drawMany(data);
}

function legend() {
  if ($("legend").childElementCount) return;
  const entries = [["--trainer", "trainer"], ["--inference", "engine"], ["--trainer-pale", "starting"], ["--waiting", "waiting"], ["--ended", "ended"], ["--bad", "failed or lost"], ["--bad-pale", "failed because of it"]];
  $("legend").replaceChildren(...entries.map(([colour, text]) => { const i = el("i"); i.style.background = `var(${colour})`; return el("span", {}, i, text); }));
}

// What stands in each GPU slot of a node: several processes may share one, one engine may span many.
function slots(node, states, begin) {
  const found = [];
  node.processes.forEach(([name, role, rank, gpus], i) => {
    const state = states[begin + i] ?? "w";
    for (const gpu of gpus.length ? gpus : [null]) found.push({ name, role, rank, gpu, state });
  });
  return found.sort((a, b) => (a.gpu ?? 99) - (b.gpu ?? 99));
}

function about(node, slot, data) {
  const replica = slot && slot.role === "inference" ? data.replicas.find((r) => r[0] === slot.rank) : null;
  const lines = [`node ${node.rank}  ${data.hostnames[node.rank] ?? node.hostname}  (${node.role})`];
  if (slot) lines.push(`${slot.name}${slot.gpu == null ? "" : `, GPU ${slot.gpu}`}: ${replica ? replica[1] : WORDS[slot.state]}`);
  if (replica && replica[2] != null) lines.push(`serves version ${replica[2]}`);
  return lines.join("\n");
}

function drawCards(data) {
  const up = new Set(data.up), lost = new Set(data.lost);
  if (drawnFor !== model) {
    drawnFor = model;
    cards = model.nodes.map((node) => {
      const title = el("b"), gpus = el("div", { class: "gpus" });
      return { node, title, gpus, card: el("div", {}, title, gpus) };
    });
    $("layout").replaceChildren(...cards.map((c) => c.card));
  }
  let begin = 0;
  for (const { node, title, gpus, card } of cards) {
    const isLost = lost.has(node.rank);
    card.className = `node ${node.role}${isLost ? " lost" : up.has(node.rank) || data.is_over ? "" : " down"}`;
    title.replaceChildren(data.hostnames[node.rank] ?? node.hostname, el("span", { text: `  ${node.rank} · ${isLost ? "lost" : node.role}` }));
    const found = slots(node, data.processes, begin);
    begin += node.processes.length;
    gpus.replaceChildren(...found.map((slot) => {
      const box = el("span", { class: `gpu ${slot.role}-${slot.state}`, text: String(slot.rank) });
      box.addEventListener("mousemove", (event) => showTip(event, about(node, slot, data)));
      box.addEventListener("mouseleave", hideTip);
      return box;
    }));
    if (!found.length) gpus.replaceChildren(el("span", { class: "gpu", text: "–" }));
  }
}

// Nodes as columns of GPUs, row by row; what is under the mouse follows from the geometry alone.
function drawMany(data) {
  const host = $("layout"), per = Math.max(1, ...model.nodes.map((n) => n.processes.reduce((sum, p) => sum + Math.max(p[3].length, 1), 0)));
  const width = host.clientWidth || 1200;
  const cell = model.nodes.length <= 128 ? 11 : model.nodes.length <= 1024 ? 7 : 4;
  const gap = cell > 5 ? 1 : 0, columns = Math.max(1, Math.floor(width / (cell + (cell > 5 ? 4 : 1)))), pitch = width / columns;
  const rowHeight = per * (cell + gap) + (cell > 5 ? 12 : 5);
  const height = Math.ceil(model.nodes.length / columns) * rowHeight;
  let canvas = host.querySelector("canvas");
  if (!canvas) { canvas = el("canvas"); host.replaceChildren(canvas); }
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale; canvas.height = height * scale;
  canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  const draw = canvas.getContext("2d");
  draw.scale(scale, scale);
  const colour = {};
  for (const role of ["trainer", "inference", "helper"]) {
    const strong = css(`--${role === "helper" ? "spare" : role}`), pale = css(role === "inference" ? "--inference-pale" : "--trainer-pale");
    Object.assign(colour, { [`${role}w`]: css("--waiting"), [`${role}s`]: pale, [`${role}r`]: strong, [`${role}e`]: css("--ended"), [`${role}f`]: css("--bad"), [`${role}v`]: css("--bad-pale"), [`${role}l`]: css("--bad") });
  }
  const placed = [];
  let begin = 0;
  model.nodes.forEach((node, index) => {
    const x = (index % columns) * pitch, y = Math.floor(index / columns) * rowHeight;
    const found = slots(node, data.processes, begin);
    begin += node.processes.length;
    draw.fillStyle = node.role === "trainer" ? css("--trainer") : node.role === "inference" ? css("--inference") : css("--spare");
    if (cell > 5) draw.fillRect(x, y, cell, 2);
    found.forEach((slot, i) => { draw.fillStyle = colour[slot.role + slot.state]; draw.fillRect(x, y + 4 + i * (cell + gap), cell, cell); });
    placed.push(found);
  });
  canvas.onmousemove = (event) => {
    const column = Math.floor(event.offsetX / pitch), row = Math.floor(event.offsetY / rowHeight), node = model.nodes[row * columns + column];
    if (!node || column >= columns) { hideTip(); return; }
    const slot = placed[row * columns + column][Math.floor((event.offsetY - row * rowHeight - 4) / (cell + gap))];
    showTip(event, about(node, slot, data));
  };
  canvas.onmouseleave = hideTip;
  drawnFor = null;
}
