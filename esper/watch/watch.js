// Fills the page of `esper watch` from the server, every two seconds while it is visible.
"use strict";
const { Drawing, add } = Plot;
const at = id => document.getElementById(id);
const runs = new Map(), rows = new Map(), drawings = new Map();
const ORDER = { running: 0, failed: 1, killed: 1, interrupted: 2, "not started": 3, finished: 4 };
let since = 0, chosen = null, version = 0, isChosenByUser = false;

async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function cells(row, values, labels, numeric = []) {  // text only: names come from disk
  row.replaceChildren();
  values.forEach((value, i) => {
    const cell = add(row, "td", { "data-label": labels[i], ...(numeric.includes(i) ? { class: "n" } : {}) });
    if (value instanceof Node) cell.append(value); else cell.textContent = value ?? "–";
  });
}

function tag(text, title = "") {
  const node = document.createElement("span");
  node.className = "tag " + text.replace(/[^a-z]/g, "");
  node.textContent = text;
  node.title = title;
  return node;
}

function progress(run) {
  const node = document.createElement("span");
  const bar = add(node, "progress", { max: run.total_steps || 1, value: Math.min(run.step, run.total_steps || 1) });
  bar.title = `step ${run.step} of ${run.total_steps ?? "?"}`;
  node.append(` ${run.epoch}\u00a0of\u00a0${run.total_epochs ?? "?"}`);
  return node;
}

function age(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  return past < 60 ? `${Math.round(past)} s ago` : past < 3600 ? `${Math.round(past / 60)} min ago`
    : past < 172800 ? `${Math.round(past / 3600)} h ago` : `${Math.round(past / 86400)} d ago`;
}

function paint(run) {
  const row = rows.get(run.number) || document.createElement("tr");
  if (!rows.has(run.number)) {
    row.tabIndex = 0;
    row.onclick = () => { isChosenByUser = true; choose(run.number); };
    row.onkeydown = event => { if (event.key === "Enter") row.onclick(); };
    rows.set(run.number, row);
  }
  const name = document.createElement("span");
  add(name, "span", { class: "faint" }, `${run.folder}/`);
  name.append(run.name);
  cells(row, [name, tag(run.status, run.reason), progress(run), run.metric, run.loss, run.growth, run.memory, age(run.changed_s)],
    ["run", "status", "epoch", run.metric_name, "loss", "growth", "memory", "last event"], [3, 4, 6, 7]);
  row.children[3].title = `validation ${run.metric_name}`;
}

function order() {
  const wanted = at("filter").value.toLowerCase();
  const sorted = [...runs.values()].sort((a, b) => (ORDER[a.status] ?? 3) - (ORDER[b.status] ?? 3) || b.changed_s - a.changed_s);
  const shown = sorted.filter(run => `${run.folder}/${run.name} ${run.status}`.toLowerCase().includes(wanted));
  at("runs").replaceChildren(...shown.map(run => rows.get(run.number)));
  const counts = new Map();
  for (const { status } of sorted) counts.set(status, (counts.get(status) || 0) + 1);
  at("counts").textContent = runs.size ? [...counts].map(([status, count]) => `${count} ${status}`).join(", ") : "no runs yet";
  if (chosen === null && sorted.length) choose(sorted[0].number);
}

function choose(number) {
  if (number === chosen) return;
  rows.get(chosen)?.classList.remove("chosen");
  rows.get(number)?.classList.add("chosen");
  chosen = number;
  version = 0;
  if (isChosenByUser) history.replaceState(null, "", `#${number}`);
  show().catch(failed);
}

function table(id, entries, names, numeric = []) {
  at(id).replaceChildren(...entries.map(entry => {
    const row = document.createElement("tr");
    cells(row, names.map(([key]) => ["stage", "verdict"].includes(key) ? tag(entry[key]) : entry[key]), names.map(([, label]) => label), numeric);
    return row;
  }));
}

async function show() {
  const number = chosen, run = await get(`run/${number}?since=${version}`);
  if (number !== chosen || run.version === version) return;
  version = run.version;
  at("run").hidden = false;
  at("name").textContent = run.name;
  at("facts").textContent = [run.status + (run.reason ? `: ${run.reason}` : ""), run.device, run.folder].filter(Boolean).join(" · ");
  at("report").href = `report/${number}`;
  at("notes").replaceChildren();
  for (const note of run.notes) add(at("notes"), "p", {}, note);
  const titles = run.figures.map(figure => figure.title);
  if (JSON.stringify(titles) !== JSON.stringify([...drawings.keys()])) {
    at("plots").replaceChildren();
    for (const drawing of drawings.values()) drawing.remove();
    drawings.clear();
    for (const { title, data } of run.figures) {
      const section = add(at("plots"), "section");
      add(section, "h3", {}, title);
      drawings.set(title, new Drawing(add(section, "figure", { class: "plot" }), data));
    }
  } else for (const { title, data } of run.figures) drawings.get(title).set(data);
  table("seeds", run.seeds, [["site", "site"], ["stage", "stage"], ["blueprint", "module"], ["epoch", "since epoch"]], [3]);
  table("modules", run.modules, [["number", "#"], ["module", "module"], ["site", "site"], ["epoch", "epoch"], ["parameters", "parameters"], ["gain", "gain"], ["verdict", "verdict"]], [3, 4, 5]);
  table("events", run.events, [["time", "time"], ["label", "event"], ["text", ""]]);
}

function failed(error) {
  at("state").textContent = error instanceof TypeError ? "esper watch has ended" : error.message;
  at("state").className = "tag culled";
}

async function look() {
  try {
    if (!document.hidden) {
      const found = await get(`runs?since=${since}`);
      since = found.version;
      for (const run of found.runs) { runs.set(run.number, run); paint(run); }
      for (const run of runs.values()) rows.get(run.number).lastChild.textContent = age(run.changed_s);
      if (found.runs.length || !runs.size) order();
      if (chosen !== null) await show();
      at("state").textContent = `read at ${new Date().toLocaleTimeString()}`;
      at("state").className = "";
    }
  } catch (error) { failed(error); }
  setTimeout(look, 2000);
}

at("filter").oninput = order;
const asked = Number(location.hash.slice(1));
if (location.hash && Number.isInteger(asked)) { chosen = asked; isChosenByUser = true; }
look();
