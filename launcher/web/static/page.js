// The page: takes what the server tells as it happens, and draws it again, at most once per frame.

import { $, COLOURS, css, el, lines, number, seconds } from "./draw.js";
import { drawLayout, setLayout } from "./layout.js";
import { drawFailure, drawSweep, drawTimeline, drawVersions, drawWaterfall } from "./panels.js";

const FIGURES = [["loss", "loss"], ["tokens_per_s", "tokens/s"], ["sync_s", "weight sync, s"], ["mismatch", "mismatch of log-probabilities"], ["pace", "seconds a step"]];
const LOG_EVERY_MS = 2000, LOGS_EVERY_MS = 5000, LOG_LINES = 400;
let data = null, sweep = null, steps = {}, isPlanned = false, run = null, received = 0;

const wordClass = (word) => ({ completed: "good", running: "going", starting: "going", draining: "going", ending: "going", booting: "going" })[word] ?? (["queued", "held", "requeued", "prepared", "suspended"].includes(word) ? "waiting" : ["cancelled", "stopped"].includes(word) ? "ended" : "bad");
const colourOf = (i) => COLOURS[i % COLOURS.length];

function plan() {
  if (isPlanned) return;
  isPlanned = true;
  requestAnimationFrame(() => { isPlanned = false; if (data) drawRun(); else if (sweep) drawAll(); });
}

function listen(address, take) {
  const source = new EventSource(address);
  source.onopen = () => { $("link").className = ""; };
  source.onerror = () => { $("link").className = "off"; };
  source.onmessage = (event) => { take(JSON.parse(event.data)); plan(); };
}

function takeRun(message) {
  const { is_new: isNew, ...fresh } = message.steps;
  if (message.layout) setLayout(message.layout);
  for (const [key, values] of Object.entries(fresh)) steps[key] = isNew ? values : [...(steps[key] ?? []), ...values];
  data = message;
  received = Date.now();
}

// What the server said was the time, going on by this machine's clock, which may be wrong.
function tick() {
  if (!data || data.is_over) return;
  data.now += (Date.now() - received) / 1000;
  received = Date.now();
  glance();
  if (data.startup_s == null) drawWaterfall(data);
}

function glance() {
  const last = steps.step?.at(-1), elapsed = data.began == null ? null : (data.ended ?? data.now) - data.began;
  $("glance").textContent = [last != null ? `step ${last.toLocaleString("en")}${data.steps_planned ? ` of ${data.steps_planned.toLocaleString("en")}` : ""}` : null, elapsed != null ? seconds(elapsed) : null, data.attempt > 1 ? `attempt ${data.attempt}` : null].filter(Boolean).join("  ·  ");
}

function points(name) {
  if (name === "pace") return steps.step.slice(1).map((s, i) => [s, steps.time[i + 1] - steps.time[i]]);
  return steps.step.flatMap((s, i) => steps[name][i] == null ? [] : [[s, steps[name][i]]]);
}

function drawRun() {
  const last = steps.step?.at(-1), word = data.word + (data.is_certain ? "" : "?");
  document.title = `${last != null ? `${last}${data.steps_planned ? `/${data.steps_planned}` : ""} ` : ""}${data.word} · ${data.name}`;
  $("name").textContent = data.name;
  $("word").textContent = word;
  $("word").className = `word ${wordClass(data.word)}`;
  $("progress").hidden = !(data.steps_planned && last != null);
  if (data.steps_planned) $("bar").style.width = `${Math.min(100, (last ?? 0) / data.steps_planned * 100)}%`;
  glance();
  if (data.is_over) $("link").className = "still";
  drawFailure(data);
  drawLayout(data);
  const rewards = points("reward");
  $("reward-note").textContent = rewards.length ? `${number(rewards[0][1])} → ${number(rewards.at(-1)[1])}` : "";
  lines($("reward"), [{ name: "reward", colour: css("--trainer"), points: rewards }], { xmax: data.is_over ? null : data.steps_planned });
  $("facts").replaceChildren(...data.facts.flatMap(([label, text]) => [el("dt", { text: label }), el("dd", { text })]), ...data.checks.flatMap(([name, ok, text]) => [el("dt", { text: "check" }), el("dd", { text: `${ok ? "passed" : "FAILED"}: ${name}: ${text}` })]));
  const found = FIGURES.map(([key, label]) => [key, label, points(key)]).filter(([, , p]) => p.length);
  $("figures-section").hidden = !found.length;
  if ($("figures").childElementCount !== found.length) $("figures").replaceChildren(...found.map(() => el("div", {}, el("h3"), el("div", { class: "chart" }))));
  found.forEach(([, label, p], i) => {
    const [head, host] = $("figures").children[i].children;
    head.replaceChildren(`${label}  `, el("b", { text: number(p.at(-1)[1]) }));
    lines(host, [{ name: label, colour: COLOURS[(i + 1) % COLOURS.length], points: p }], { height: 84, small: true });
  });
  drawVersions(data);
  drawWaterfall(data);
  drawTimeline(data);
}

function drawAll() {
  const going = sweep.runs.filter((r) => !r.is_over).length, done = sweep.runs.filter((r) => r.word === "completed").length;
  document.title = `${done}/${sweep.runs.length} · ${sweep.name}`;
  $("name").textContent = sweep.name;
  $("glance").textContent = `${sweep.runs.length} runs  ·  ${done} completed  ·  ${going} not over`;
  $("progress").hidden = false;
  $("bar").style.width = `${sweep.runs.length ? 100 * (sweep.runs.length - going) / sweep.runs.length : 0}%`;
  const best = sweep.runs.reduce((a, b) => (b.reward ?? -Infinity) > (a?.reward ?? -Infinity) ? b : a, null);
  $("sweep-note").textContent = best?.reward != null ? `best so far ${number(best.reward)}: ${best.name}` : "";
  lines($("sweep-chart"), sweep.runs.map((r, i) => ({ name: r.name, colour: colourOf(i), points: r.curve })), {});
  drawSweep(sweep, colourOf, wordClass);
}

async function watchLogs(base) {
  const choice = $("log-choice"), pane = $("log");
  let known = "";
  const refreshChoice = async () => {
    const answer = await fetch(`${base}/logs`);
    if (!answer.ok) return;
    const logs = await answer.json(), text = JSON.stringify(logs);
    if (text === known) return;
    known = text;
    const before = choice.value, newest = logs.filter((l) => l.attempt !== "job").map((l) => +l.attempt).reduce((a, b) => Math.max(a, b), 0);
    const many = new Set(logs.map((l) => l.attempt)).size > 1;
    choice.replaceChildren(...logs.map((l) => el("option", { value: l.id, text: many ? l.id : l.id.replace(/^\d+\//, "") })));
    const failed = data?.failure?.log?.split("/").at(-1)?.replace(/\.log$/, "");
    const wanted = [before, `${newest}/${failed}`, `${newest}/trainer-0000`, logs.at(-1)?.id].find((id) => logs.some((l) => l.id === id));
    if (wanted) choice.value = wanted;
  };
  const show = async (isForced) => {
    if (!choice.value || (!isForced && (!$("log-follow").checked || document.hidden))) return;
    const answer = await fetch(`${base}/log?lines=${LOG_LINES}&id=${encodeURIComponent(choice.value)}`);
    if (!answer.ok) return;
    const word = $("log-filter").value.toLowerCase();
    const shown = (await answer.text()).split("\n").filter((line) => line.toLowerCase().includes(word)).join("\n");
    if (shown === pane.textContent) return;
    pane.textContent = shown;
    pane.scrollTop = pane.scrollHeight;
  };
  choice.onchange = () => show(true);
  $("log-filter").oninput = () => show(true);
  await refreshChoice();
  await show(true);
  setInterval(refreshChoice, LOGS_EVERY_MS);
  setInterval(() => show(false), LOG_EVERY_MS);
}

async function main() {
  const about = await (await fetch("api/about")).json();
  run = about.run ?? new URLSearchParams(location.search).get("run");
  addEventListener("resize", plan);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", plan);
  if (run == null) {
    $("sweep").hidden = false;
    listen("api/sweep", (message) => { sweep = message; });
    return;
  }
  $("run").hidden = false;
  $("back").hidden = about.run != null;
  const base = `api/run/${encodeURIComponent(run)}`;
  listen(base, takeRun);
  setInterval(tick, 1000);
  await watchLogs(base);
}

main();
