"use strict";
// Everything shown is put in as text, never as markup.

const EVERY_MS = 2000;
const TIMEOUT_MS = 5000;
let key = "";  // of an operator, where the router asks for one; kept nowhere else
let refusedKey = null;  // not sent again by itself: the router counts every refusal
let lastAnswer = null;

const byId = (id) => document.getElementById(id);

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function scoped(cell, scope) {
  cell.scope = scope;
  return cell;
}

const columnHead = (className, text) => scoped(element("th", className, text), "col");
const rowHead = (className, text) => scoped(element("th", className, text), "row");

function fillTable(id, heads, rows) {
  const body = element("tbody", "", ...rows);
  byId(id).replaceChildren(element("thead", "", element("tr", "", ...heads)), body);
}

// Figures as people read them; "–" where nothing was measured.

function seconds(value) {
  if (value === null) return "–";
  if (value < 0.9995) return `${Number((value * 1000).toPrecision(3))} ms`;
  return value < 60 ? `${Number(value.toPrecision(3))} s` : duration(value);
}

function duration(value) {
  const whole = Math.max(0, Math.floor(value));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

function amount(value) {
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= 0.9995 * size) return `${Number((value / size).toPrecision(3))} ${letter}`;
  }
  return String(value);
}

const ratio = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");

function rate(value) {
  if (value === 0) return "0";
  return value < 10 ? value.toFixed(2) : value.toFixed(0);
}

function showTiles(status) {
  const recent = status.window;
  const tiles = [
    ["Calls per second", rate(recent.calls_per_second), `${recent.calls} calls`],
    ["Failed calls", String(recent.failed), ratio(recent.failed, recent.calls)],
    ["Sessions active", String(status.sessions), ""],
    ["Hit ratio", ratio(recent.reused_tokens, recent.prompt_tokens), `of ${amount(recent.prompt_tokens)} prompt tokens`],
    ["Paid by other models", ratio(recent.reused_from_others_tokens, recent.prompt_tokens), "of prompt tokens"],
    ["Time to first token", seconds(recent.first_token.p50), `p95 ${seconds(recent.first_token.p95)}`],
    ["Call duration", seconds(recent.duration.p50), `p95 ${seconds(recent.duration.p95)}`],
    ["In flight", inFlight(status), `on prefill / decode, ${status.queue.calls} waiting`],
  ];
  byId("tiles").replaceChildren(
    ...tiles.map(([name, value, note]) =>
      element("div", "", element("dt", "", name), element("dd", "", value, element("small", "", note)))
    )
  );
  byId("window").textContent = duration(Math.min(recent.seconds, Math.max(60, status.now - status.started)));
}

function inFlight(status) {
  const on = (role) => status.workers.filter((worker) => worker.role === role);
  const count = (workers) => workers.reduce((sum, worker) => sum + worker.in_flight, 0);
  return `${count(on("prefill"))} / ${count(on("decode"))}`;
}

function rectangle(className, x, y, width, height) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  made.setAttribute("class", className);
  Object.entries({ x, y, width, height }).forEach(([name, value]) => made.setAttribute(name, value));
  return made;
}

function showBars(recent) {
  const [width, height] = [600, 80];
  const most = Math.max(1, ...recent.bars.map(([calls]) => calls));
  const step = width / recent.bars.length;
  const shapes = [];
  recent.bars.forEach(([calls, failed], place) => {
    if (!calls) return;
    const tall = (calls / most) * height;
    const red = (failed / most) * height;
    shapes.push(rectangle("bar", place * step + 0.5, height - tall, step - 1, tall - red));
    if (failed) shapes.push(rectangle("bar failed", place * step + 0.5, height - red, step - 1, red));
  });
  byId("bars").replaceChildren(...shapes);
  byId("bars").setAttribute("aria-label", `Calls in every ${recent.bar_seconds} seconds, at most ${most}`);
  const peak = `calls ended, per ${recent.bar_seconds} s (highest ${most}; failed in red)`;
  byId("bars-caption").replaceChildren(
    element("span", "", `${duration(recent.seconds)} ago`), element("span", "", peak), element("span", "", "now")
  );
}

function showWorkers(status) {
  const heads = [
    columnHead("", "worker"), columnHead("wide", "role"), columnHead("wide", "pool"), columnHead("", "state"),
    columnHead("number", "in flight"), columnHead("number", "since"),
  ];
  fillTable("workers", heads, status.workers.map((worker) => {
    const [kind, said] = !worker.up ? ["down", "○ down"] : worker.draining ? ["draining", "◐ draining"] : ["up", "● up"];
    const state = element("td", "", element("span", kind, said));
    if (worker.reason) state.append(element("span", "why", worker.reason));
    const name = rowHead("", worker.name);
    name.append(element("span", "why narrow", worker.pool));
    return element("tr", "",
      name, element("td", "wide", worker.role), element("td", "wide", worker.pool), state,
      element("td", "number", worker.in_flight), element("td", "number", duration(status.now - worker.since)));
  }));
}

function showReuse(status) {
  const names = status.models.map((model) => model.name);
  const most = Math.max(1, ...status.reuse.flatMap((row, at) => row.filter((_, payer) => payer !== at)));
  const heads = [columnHead("", "called ↓  paid by →"), ...names.map((name) => columnHead("from", name))];
  fillTable("reuse", heads, status.reuse.map((row, at) => {
    const cells = row.map((tokens, payer) => {
      const cell = element("td", payer === at ? "number own" : "number", tokens ? amount(tokens) : "–");
      cell.style.setProperty("--share", tokens / most);
      cell.title = payer === at
        ? `${names[at]} reused ${tokens} tokens of its own calls`
        : `${names[at]} reused ${tokens} tokens that ${names[payer]} had paid for`;
      return cell;
    });
    return element("tr", "", rowHead("", names[at]), ...cells);
  }));
}

function showNotices(notices) {
  byId("notices").hidden = notices.length === 0;
  const heads = [columnHead("", "models"), columnHead("number", "computed again"), columnHead("", "cure")];
  fillTable("divergence", heads, notices.map((notice) => element("tr", "",
    rowHead("", notice.models.join(", ")), element("td", "number", amount(notice.tokens)),
    element("td", "", notice.cure))));
}

function showLatency(recent) {
  const heads = [columnHead("", ""), ...["p50", "p95", "p99"].map((name) => columnHead("number", name))];
  const rows = [
    ["time to first token (streams)", recent.first_token],
    ["time per output token (streams)", recent.per_token],
    ["call duration", recent.duration],
  ];
  fillTable("latency", heads, rows.map(([name, found]) => element("tr", "", rowHead("", name),
    ...[found.p50, found.p95, found.p99].map((value) => element("td", "number", seconds(value))))));
}

function showModels(status) {
  const heads = [
    columnHead("", "model"), columnHead("", "base"), columnHead("wide", "prefill pool"), columnHead("", "decode pool"),
  ];
  fillTable("models", heads, status.models.map((model) => element("tr", "", rowHead("", model.name),
    element("td", "", model.base), element("td", "wide", model.prefill), element("td", "", model.decode))));
}

function show(status) {
  const down = status.workers.filter((worker) => !worker.up).length;
  const running = `version ${status.version}, running for ${duration(status.now - status.started)}`;
  sayState(down ? `${down} of ${status.workers.length} workers down` : "all workers up", down > 0);
  byId("running").textContent = running;
  showTiles(status);
  showBars(status.window);
  showWorkers(status);
  showReuse(status);
  showNotices(status.notices);
  showLatency(status.window);
  showModels(status);
  document.querySelector("main").hidden = false;
}

function sayState(text, bad) {
  byId("state").textContent = text;
  byId("state").className = bad ? "bad" : "";
}

async function ask() {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch("status.json", { headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  const refused = answer.status === 401 || answer.status === 403;
  byId("login").hidden = !refused;
  refusedKey = refused ? key : null;
  if (refused) {
    sayState(key ? "this key is not an operator's" : "an operator's key is needed", true);
    document.querySelector("main").hidden = true;
    return;
  }
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  show(await answer.json());
  lastAnswer = Date.now();
}

async function update() {
  if (document.hidden || key === refusedKey) return;
  try {
    await ask();
  } catch (error) {
    const since = lastAnswer === null ? "" : ` for ${duration((Date.now() - lastAnswer) / 1000)}; what is below is old`;
    sayState(`no answer from the router${since}`, true);
  }
}

async function keepUpdating() {
  await update();
  setTimeout(keepUpdating, EVERY_MS);
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value;
  refusedKey = null;
  update();
});
document.addEventListener("visibilitychange", update);
keepUpdating();
