"use strict";
// The page's own script: it unpacks the libraries and the data, draws charts when they come into view, makes tables
// sortable, and keeps what the reader chose in the address, so that a link shows the same.

const $ = (id) => document.getElementById(id);
const landed = location.hash.slice(1);
const state = new URLSearchParams(landed.includes("=") ? landed : landed && { at: landed });

async function unpack(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function append(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  document.head.append(element);
}

function remember(name, value) {
  if (value) state.set(name, value);
  else state.delete(name);
  const text = state.toString();
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

function options(select, values) {
  select.append(...values.map((value) => new Option(value, value)));
}

// ---- charts

function fitted(spec, width) {
  const copy = structuredClone(spec);
  copy.config = structuredClone(CONFIG);
  copy.config.legend.columns = Math.max(1, Math.floor(width / 190));
  copy.config.legend.labelLimit = width / copy.config.legend.columns - 45;
  copy.config.axisY.labelLimit = Math.min(copy.config.axisY.labelLimit, 0.4 * width);
  if (copy.columns) copy.columns = Math.max(1, Math.min(copy.columns, Math.floor((width - 40) / 270)));
  // panels side by side: methods are named in the first of each row
  (copy.concat || []).forEach((panel, i) => {
    if (i % copy.columns) panel.encoding.y.axis = null;
  });
  return copy;
}

async function draw(place) {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "yes";
  const spec = data.charts[place.dataset.chart];
  for (const param of spec.params || []) {
    const chosen = state.get(`chart-${param.name}`);
    if (chosen && param.bind && param.bind.options.includes(chosen)) param.value = chosen;
  }
  const result = await vegaEmbed(place, fitted(spec, place.clientWidth), { actions: { export: true, source: false, compiled: false, editor: false }, ast: true, renderer: "svg", mode: "vega-lite", logLevel: 1 });
  place.querySelector("summary")?.setAttribute("aria-label", "Save this figure");
  for (const param of spec.params || [])
    result.view.addSignalListener(param.name, (name, value) => remember(`chart-${name}`, value));
}

// ---- tables

// The number that a cell begins with, such as .838 (.739 .937), <.001 or 2 [1-3]; null where it begins with none.
function firstNumber(text) {
  const found = /^<?([+-]?(\d+\.?\d*|\.\d+))/.exec(text.trim());
  return found ? Number(found[1]) : null;
}

function sortable(table) {
  if (table.dataset.sortable) return;
  table.dataset.sortable = "yes";
  const rows = [...table.tBodies[0].rows];
  const columns = [...table.tHead.rows[0].cells].map((_, i) => {
    const texts = rows.map((row) => row.cells[i].textContent).filter((text) => text.trim());
    if (2 * texts.filter((text) => firstNumber(text) !== null).length <= texts.length) return null;
    rows.forEach((row) => { row.cells[i].dataset.order ??= firstNumber(row.cells[i].textContent) ?? -1e9; });
    return { type: "num" };
  });
  jQuery(table).DataTable({ columns, paging: false, info: false, searching: false, order: [], autoWidth: false,
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null } });
}

const escaped = document.createElement("i");
function asHtml(text) {
  escaped.textContent = text;
  return escaped.innerHTML;
}

function showResults() {
  const { columns, rows } = data.results;
  const form = $("filters");
  const at = Object.fromEntries(columns.map((name, i) => [name, i]));
  const distinct = (name) => [...new Set(rows.map((row) => row.cells[at[name]][1]))];
  for (const name of ["family", "task", "method"]) options(form.elements[name], distinct(name));
  options(form.elements.shots, distinct("shots").sort((a, b) => a - b));
  for (const control of form.elements) {
    const chosen = state.get(control.name);
    if (chosen === null) continue;
    if (control.type === "checkbox") control.checked = chosen === "yes";
    else control.value = chosen;
  }
  const hidden = new Set((state.get("hide") || "").split("|").filter(Boolean));
  const order = (state.get("sort") || "").split(":");
  const table = jQuery("#results").DataTable({
    data: rows,
    columns: columns.map((title, i) => ({
      title: asHtml(title),
      visible: !hidden.has(title),
      type: i < 4 ? "string" : "num",
      className: `${i < 4 ? "text" : "number"}${title === "method" ? " method" : ""}`,
      render: (_, kind, row) => {
        const [value, text] = row.cells[i];
        if (kind === "sort" || kind === "type") return value === null ? "" : value;
        return kind === "display" && title === "method" ? `<button type="button" class="facts">${asHtml(text)}</button>` : asHtml(text);
      },
    })),
    order: at[order[0]] === undefined ? [] : [[at[order[0]], order[1]]], // as on the board where none is chosen
    deferRender: true,
    pageLength: 25,
    autoWidth: false,
    search: { search: state.get("q") || "" },
    layout: {
      topStart: { buttons: [{ extend: "copyHtml5", text: "Copy" }, { extend: "csvHtml5", text: "CSV", title: "results" }, { extend: "colvis", text: "Columns" }] },
      topEnd: "search",
      bottomStart: "info",
      bottomEnd: "paging",
    },
  });
  const complete = completeMethods();
  table.search.fixed("filters", (_, row) => {
    const value = (name) => row.cells[at[name]][1];
    for (const name of ["family", "task", "method"])
      if (form.elements[name].value && value(name) !== form.elements[name].value) return false;
    const shots = form.elements.shots.value;
    if (shots ? shots !== "every" && value("shots") !== shots : !row.last) return false;
    return !form.elements.complete.checked || complete.has(value("method"));
  });
  const sorted = () => {
    // as on the board, whose order is that of the largest number of shots; by task and accuracy for others
    if (!state.has("sort")) table.order(form.elements.shots.value ? [[at.task, "asc"], [at.accuracy, "desc"]] : []);
  };
  form.addEventListener("input", () => {
    for (const control of form.elements)
      remember(control.name, control.type === "checkbox" ? (control.checked ? "yes" : "") : control.value);
    sorted();
    table.draw();
    counted();
  });
  table.on("order", () => {
    const order = table.order();
    if (order.length < 2) remember("sort", order.length && order[0][1] ? `${columns[order[0][0]]}:${order[0][1]}` : "");
  });
  table.on("search", () => remember("q", table.search()));
  table.on("column-visibility", () => remember("hide", columns.filter((_, i) => !table.column(i).visible()).join("|")));
  jQuery("#results").on("click", "button.facts", (event) => {
    const row = table.row(event.target.closest("tr"));
    const keys = row.data().keys.map((key) => `manyminds show ${key}`).join("\n");
    if (row.child.isShown()) row.child.hide();
    else {
      const text = document.createElement("pre");
      text.textContent = keys ? `Facts of each trial, one a seed:\n${keys}` : "No trial of this row has finished.";
      row.child(text).show();
    }
  });
  const counted = () => {
    const shown = new Set(table.rows({ search: "applied" }).data().toArray().map((row) => row.cells[at.task][1]));
    const shots = form.elements.shots.value;
    const task = form.elements.task.value;
    const known = [...new Set(rows.filter((row) => !task || row.cells[at.task][1] === task).map((row) => row.cells[at.shots][1]))].sort((a, b) => a - b);
    $("counted").textContent = shots && shots !== "every" ? `${shown.size} of the settings chosen above with ${shots} shot${shots === "1" ? "" : "s"}; known: ${known.join(", ")}.` : "";
  };
  sorted();
  table.draw();
  counted();
}

function completeMethods() {
  const tasks = new Set(data.results.rows.map((row) => row.cells[0][1])).size;
  const of = new Map();
  for (const { cells } of data.results.rows)
    if (["ranked", "privileged"].includes(cells[3][1])) of.set(cells[2][1], (of.get(cells[2][1]) || new Set()).add(cells[0][1]));
  return new Set([...of].filter(([, found]) => found.size === tasks).map(([method]) => method));
}

// ---- people

function showPeople() {
  const form = $("person");
  if (!form || !Object.keys(data.people).length) return;
  $("people").hidden = false;
  const { task, number } = form.elements;
  options(task, Object.keys(data.people));
  task.value = data.people[state.get("of")] ? state.get("of") : task.value;
  const fill = () => {
    number.replaceChildren();
    const { part, people } = data.people[task.value];
    number.append(...people.map((n) => new Option($(`${part}-person${n}`) ? `${n} · with examples` : n, n)));
  };
  const show = () => {
    const { part, people, asked, accuracy, shots } = data.people[task.value];
    const i = people.indexOf(Number(number.value));
    const base = (accuracy[data.reference] || [])[i];
    const rows = Object.entries(accuracy).map(([label, own]) => [label, own[i], own[i] - base]).sort((a, b) => b[1] - a[1]);
    const best = rows.filter((row) => row[1] === rows[0][1]).map((row) => row[0]);
    const worse = rows.filter((row) => row[2] < 0).map((row) => row[0]);
    $("person-says").textContent =
      `Person ${people[i]} was asked ${asked[i]} questions after ${shots} shots, over all seeds. ` +
      `Highest accuracy: ${rows[0][1].toFixed(3)}, by ${best.join(", ")}; ${data.reference} has ${base.toFixed(3)}. ` +
      (worse.length ? `Lower than ${data.reference}: ${worse.join(", ")}.` : `No method is lower than ${data.reference}.`);
    const example = `${part}-person${people[i]}`;
    $("person-example").hidden = !$(example);
    $("person-example").firstElementChild.setAttribute("href", `#${example}`);
    $("person-rows").replaceChildren(
      ...rows.map((cells) => {
        const tr = document.createElement("tr");
        tr.append(...cells.map((cell, k) => {
          const td = document.createElement("td");
          td.textContent = k === 0 ? cell : (k === 2 && cell > 0 ? "+" : "") + cell.toFixed(3);
          return td;
        }));
        return tr;
      }),
    );
    remember("of", task.value);
    remember("person", number.value);
  };
  fill();
  const wanted = state.get("person");
  if (wanted && [...number.options].some((option) => option.value === wanted)) number.value = wanted;
  const keep = new URLSearchParams(state);
  show();
  if (!keep.has("person")) for (const name of ["of", "person"]) remember(name, "");
  task.addEventListener("input", () => { fill(); show(); });
  number.addEventListener("input", show);
}

// ---- files

function offerFiles() {
  for (const [name, file] of Object.entries(data.files)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => {
      const content = file.base64 ? Uint8Array.from(atob(file.base64), (c) => c.charCodeAt(0)) : file.text;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([content], { type: file.type }));
      link.download = name;
      link.click();
      URL.revokeObjectURL(link.href);
    });
    $("files").append(button);
  }
}

// ---- places on the page: a folded part opens, and what was chosen stays in the address

function goTo(id) {
  const target = $(id);
  if (!target) return;
  for (let folded = target.closest("details"); folded; folded = folded.parentElement.closest("details")) folded.open = true;
  target.scrollIntoView();
}

function followLinks() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (!link) return;
    event.preventDefault();
    const id = link.getAttribute("href").slice(1);
    remember("at", id);
    goTo(id);
  });
  goTo(state.get("at"));
}

let data;
let CONFIG;

async function start() {
  const [vega, tables, styles, text] = await Promise.all(["vega", "tables", "table-styles", "data"].map(unpack));
  append("style", styles);
  append("script", vega);
  append("script", tables);
  data = JSON.parse(text);
  CONFIG = data.config;
  for (const part of document.querySelectorAll(".needs-scripts")) part.hidden = false;
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries)
      if (isIntersecting) {
        if (target.matches("table")) sortable(target);
        else draw(target);
      }
  }, { rootMargin: "300px" });
  for (const target of document.querySelectorAll("[data-chart], table.sortable")) seen.observe(target);
  addEventListener("beforeprint", () => document.querySelectorAll("[data-chart]").forEach(draw));
  offerFiles();
  showResults();
  showPeople();
  followLinks();
  document.body.dataset.ready = "yes";
}

start();
