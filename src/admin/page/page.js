
"use strict";
// Everything that comes from elsewhere (names, keys, errors) is put in as text, never as HTML.
const MINUTES = 15;
const WIDTH = 360, HEIGHT = 130, LEFT = 46, RIGHT = 6, TOP = 8, BOTTOM = 20;
const $ = (id) => document.getElementById(id);

let samples = [];   // the last fifteen minutes, the oldest first
let earlier = [];   // what was counted in the last seconds, for rates
let silentSince = null;

function node(name, attributes, ...content) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...content);
  return element;
}
function drawn(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// How people say it.
const short = (x) => x >= 100 || Number.isInteger(x) ? String(Math.round(x)) : String(Number(x.toPrecision(2)));
function seconds(s) {
  if (s === 0) return "0";
  if (s < 0.0005) return "under 1 ms";
  if (s < 1) return short(Number((s * 1000).toPrecision(3))) + " ms";
  if (s < 120) return short(Number(s.toPrecision(3))) + " s";
  if (s < 7200) return short(s / 60) + " min";
  if (s < 172800) return short(s / 3600) + " h";
  return short(s / 86400) + " days";
}
function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) { n /= 1024; unit += 1; }
  return short(n) + " " + units[unit];
}
const rate = (x) => (x === 0 ? "0" : x < 0.01 ? "under 0.01" : short(x)) + "/s";
const count = (n) => n.toLocaleString("en");
const clock = (at) => new Date(at).toLocaleTimeString();

// The end of an axis: a round number, in the units that its labels are in.
function roundUp(value, step) {
  if (value <= 0) return step;
  const base = step === 1 ? 10 : step;
  const power = Math.pow(base, Math.floor(Math.log(value) / Math.log(base)));
  for (const factor of step === 1 ? [1, 2, 5, 10] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]) {
    if (factor * power >= value * 0.9999) return factor * power;
  }
  return value;
}

// Each line is { name, points: [[at, value or null]] }.
function chart(id, lines, { words, floor, step = 1 }) {
  const svg = $(id);
  const end = samples.length ? samples[samples.length - 1].at : Date.now();
  const start = end - MINUTES * 60000;
  const all = lines.flatMap((line) => line.points.map(([, value]) => value || 0));
  const top = roundUp(Math.max(floor, ...all), step);
  const x = (at) => LEFT + (WIDTH - LEFT - RIGHT) * (at - start) / (end - start);
  const y = (value) => HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top;
  const parts = [svg.querySelector("title")];
  for (const value of [0, top / 2, top]) {
    parts.push(drawn("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    parts.push(drawn("text", { x: LEFT - 5, y: y(value) + 3.5, "text-anchor": "end" }, words(value)));
  }
  for (const minutes of [15, 10, 5, 0]) {
    const anchor = minutes === 0 ? "end" : minutes === 15 ? "start" : "middle";
    const text = minutes === 0 ? "now" : "-" + minutes + " min";
    parts.push(drawn("text", { x: x(end - minutes * 60000), y: HEIGHT - 5, "text-anchor": anchor }, text));
  }
  for (const [from, to] of lostTimes()) {
    const left = Math.max(LEFT, x(from));
    parts.push(drawn("rect", { class: "lost", x: left, y: TOP, width: Math.max(1.5, x(to) - left), height: HEIGHT - BOTTOM - TOP }));
  }
  lines.forEach((line, n) => {
    const shade = "s" + Math.min(n, 5);
    let path = "", last = null, alone = true;
    for (const [at, value] of line.points) {
      if (value === null || at < start) { last = null; continue; }
      if (last !== null) alone = false;
      path += (last === null ? "M" : "L") + x(at).toFixed(1) + " " + y(value).toFixed(1);
      last = [at, value];
    }
    if (path) parts.push(drawn("path", { class: "line " + shade, d: path }));
    if (last && alone) parts.push(drawn("circle", { class: "dot " + shade, cx: x(last[0]), cy: y(last[1]), r: 2 }));
  });
  svg.replaceChildren(...parts);
}

// Times in which the feed was lost.
function lostTimes() {
  const times = [];
  let from = null;
  for (const { at, lost } of samples) {
    if (lost && from === null) from = at;
    if (!lost && from !== null) { times.push([from, at]); from = null; }
  }
  if (from !== null) times.push([from, samples[samples.length - 1].at]);
  return times;
}

function draw() {
  const last = samples[samples.length - 1];
  if (!last) return;
  const lag = samples.map((sample) => [sample.at, sample.feed_lag]);
  chart("lag", [{ points: lag }], { words: seconds, floor: 0.01 });
  const highest = Math.max(...samples.map((sample) => sample.feed_lag));
  tell("lag", (last.lost ? "the feed is lost; " : "") + "now " + seconds(last.feed_lag) + ", at most " + seconds(highest));

  const names = [...new Set(samples.flatMap((sample) => sample.sources.map(([name]) => name)))];
  const of = (sample, name) => { const found = sample.sources.find(([n]) => n === name); return found ? found[1] : null; };
  const behind = names.map((name) => ({ name, points: samples.map((sample) => [sample.at, of(sample, name)]) }));
  chart("behind", behind, { words: bytes, floor: 1024, step: 1024 });
  const current = last.sources.map(([name, value]) => [name, value === null ? "out of sight" : bytes(value)]);
  tell("behind", current.map(([name, value]) => name + " " + value).join(", ") || "no sources");
  $("behind-words").replaceChildren(...current.map(([name, value]) =>
    node("span", {}, node("i", { class: "key s" + Math.min(names.indexOf(name), 5) }), name + " " + value)));

  const refusals = samples.slice(1).map((sample, n) => {
    const more = sample.refused - samples[n].refused, time = (sample.at - samples[n].at) / 1000;
    // After a restart of the proxy it counts from 0 again.
    return [sample.at, time > 0 ? Math.max(0, more) / time : 0];
  });
  chart("refusals", [{ points: refusals }], { words: (x) => x === 0 ? "0" : rate(x), floor: 1 });
  const sum = refusals.length ? samples.slice(1).reduce((all, s, n) => all + Math.max(0, s.refused - samples[n].refused), 0) : 0;
  tell("refusals", "now " + rate(refusals.length ? refusals[refusals.length - 1][1] : 0) + ", " + count(sum) + " in what is drawn");
}

function tell(id, words) {
  $(id + "-words").textContent = words;
  $(id + "-title").textContent = words;
}

// Rewrites a text only if it has changed: a screen reader reads aloud what is written.
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function health(level, sentence, lines) {
  $("health").dataset.level = level;
  write($("sentence"), sentence);
  document.title = { good: "", watch: "! ", bad: "!! " }[level] + "cachefence";
  const more = lines.slice(1);
  $("lines").hidden = more.length === 0;
  $("lines").replaceChildren(...more.map((line) => node("li", {}, line)));
}

function facts(now) {
  const { status } = now;
  const entries = [
    ["contract", status.contract + (status.strict && !status.strict.in_force ? ", not in force" : "")],
    ["mode", status.mode],
    ["clients", count(now.clients)],
    ["keys remembered", count(status.fence.keys)],
    ["refused since the start", count(now.refused)],
    ["up for", seconds(now.up_for)],
    ["version", status.version],
  ];
  $("facts").replaceChildren(...entries.map(([name, value]) => node("div", {}, node("dt", {}, name), node("dd", {}, value))));
}

function state(guard, now) {
  const { status } = now;
  if (guard.broken) return ["broken: see the log", "bad"];
  if (status.feed.lost) return ["feed lost", "bad"];
  if (!status.cache.connected) return ["Redis away", "bad"];
  if (status.cache.purging) return ["being purged", "watch"];
  if (status.strict && !status.strict.in_force) return ["strict not in force", "bad"];
  if (status.mode === "observe") return ["observed", "watch"];
  return ["guarded", "good"];
}

function guards(now) {
  const past = earlier[0];
  const rows = now.status.guards.map((guard) => {
    const reads = guard.hits + guard.misses + guard.bypassed;
    const before = past && past.status.guards.find((other) => other.table === guard.table);
    const time = past ? (now.at - past.at) / 1000 : 0;
    const deleted = before && time > 0 ? Math.max(0, guard.invalidated - before.invalidated) / time : null;
    const [words, level] = state(guard, now);
    const numbers = [
      count(guard.hits), count(guard.misses + guard.bypassed),
      reads ? (100 * guard.hits / reads).toFixed(1) + " %" : "-",
      count(guard.fresh), count(guard.stale), count(guard.unproven), deleted === null ? "-" : rate(deleted),
    ];
    const keys = node("code", { class: "keys" }, guard.keys.join("  "));
    return node("tr", {}, node("th", { scope: "row" }, guard.table, keys), node("td", { class: level }, words),
      ...numbers.map((number) => node("td", { class: "n" }, number)));
  });
  const none = node("tr", {}, node("td", { colspan: "9" }, "No guards: nothing is protected. Add a [[guard]] to the settings."));
  $("guards").tBodies[0].replaceChildren(...(rows.length ? rows : [none]));
}

function refused(now) {
  const last = now.last_refused;
  $("none-refused").hidden = last.length > 0;
  write($("none-refused"), "None since the start, " + seconds(now.up_for) + " ago.");
  const table = $("refused");
  table.parentElement.hidden = last.length === 0;
  const newest = last.length ? last[0].number + ":" + last[0].at : "";
  if (table.dataset.newest !== newest) {
    table.dataset.newest = newest;
    table.tBodies[0].replaceChildren(...last.map((fill) => {
      // The code word says what the verdict is; the sentence follows it.
      const why = fill.why.replace(/^[A-Z]+ /, "");
      const did = { observed: "would be refused", deleted: "refused, and the key deleted", refused: "refused" }[fill.action];
      return node("tr", {},
        node("td", {}, node("time", { datetime: new Date(fill.at).toISOString() }, clock(fill.at))),
        node("td", {}, node("code", {}, fill.key)),
        node("td", {}, fill.guard),
        node("td", {}, why[0].toUpperCase() + why.slice(1) + ". ", node("span", { class: "tag" }, fill.verdict + ", " + did)),
        node("td", { class: "n" }, fill.age === null ? "-" : fill.age === 0 ? "not yet visible everywhere" : seconds(fill.age / 1000)),
        node("td", {}, node("code", {}, fill.evidence)),
        node("td", {}, node("code", {}, fill.fence || "-")));
    }));
  }
}

function show(now) {
  silentSince = null;
  health(now.level, now.sentence, now.lines);
  facts(now);
  guards(now);
  refused(now);
  earlier.push(now);
  while (earlier.length > 1 && now.at - earlier[0].at > 10000) earlier.shift();
}

function listen() {
  const events = new EventSource("/events");
  events.addEventListener("history", (event) => { samples = JSON.parse(event.data); earlier = []; draw(); });
  events.addEventListener("sample", (event) => {
    const sample = JSON.parse(event.data);
    samples = samples.filter(({ at }) => sample.at - at < MINUTES * 60000).concat(sample);
    draw();
  });
  events.addEventListener("now", (event) => show(JSON.parse(event.data)));
  events.onerror = () => {
    silentSince = silentSince || Date.now();
    health("bad", "The proxy does not answer since " + clock(silentSince) + ". What follows is from before.", []);
    // The browser tries again by itself, but for answers that are not what it expects.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  };
}

async function explain(event) {
  event.preventDefault();
  const query = new URLSearchParams({ key: $("key").value });
  if ($("db").value) query.set("db", $("db").value);
  try {
    const answer = await fetch("/explain?" + query);
    if (!answer.ok) throw new Error(await answer.text());
    const { words } = await answer.json();
    // Each line is a name and what it says.
    const rows = words.flatMap((line) => {
      const colon = line.indexOf(": ");
      const [name, rest] = colon < 0 ? ["", line] : [line.slice(0, colon), line.slice(colon + 2)];
      return [node("dt", {}, name), node("dd", {}, rest)];
    });
    $("explained").replaceChildren(node("dl", {}, ...rows));
  } catch (error) {
    $("explained").replaceChildren(node("p", { class: "bad" }, "Not explained: " + error.message));
  }
}

$("explain").addEventListener("submit", explain);
listen();
