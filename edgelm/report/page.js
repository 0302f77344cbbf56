"use strict";
// The page is whole without this: it adds sorting, filters and the choice of lines, and opens the details for print.
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

function sortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    if (!heading.dataset.sort) return;
    const button = make("button", { type: "button" }, ...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const falling = heading.getAttribute("aria-sort") === "ascending" ||
        (!heading.hasAttribute("aria-sort") && heading.dataset.sort === "falling");
      const sign = falling ? -1 : 1;
      const value = (row) => row.cells[column].dataset.value ?? "";
      const rows = [...table.tBodies[0].rows].sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === "" || b === "") return (a === "") - (b === "");  // what was not measured comes last either way
        return sign * (heading.dataset.sort === "text" ? a.localeCompare(b) : a - b);
      });
      table.tBodies[0].append(...rows);
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
      limit(table);
    });
  });
}

// Of a long table the first rows are shown, and the others when they are asked for.
const MOST_ROWS = 50;
const whole = new WeakSet();
function limit(table) {
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    if (row.classList.contains("filtered")) continue;
    row.classList.toggle("beyond", shown >= MOST_ROWS && !whole.has(table));
    shown += 1;
  }
  const more = table.nextElementSibling;
  if (!more) return;
  more.hidden = shown <= MOST_ROWS || whole.has(table);
  more.textContent = `Show all ${shown} rows`;
}
function shorten(table) {
  if (table.tBodies[0].rows.length <= MOST_ROWS) return;
  const more = make("button", { type: "button", className: "more" });
  more.addEventListener("click", () => { whole.add(table); limit(table); });
  table.after(more);
  limit(table);
}

// Filters: a run that does not pass is hidden in every table, chart and list.
const runs = new Map();  // number -> what is known of it
for (const row of document.querySelectorAll("tr[data-model]")) {
  const { model, recipe, runtime, source, front } = row.dataset;
  const place = row.closest(".machine").querySelector(".place").textContent;
  const text = [model, runtime, row.querySelector(".detail").textContent, place].join(" ").toLowerCase();
  runs.set(row.dataset.run, { model, recipe, runtime, source, place, front, text });
}
const facets = [["place", "Device"], ["model", "Model"], ["recipe", "Weights"], ["runtime", "Runtime"], ["source", "Measured by"]];
const hidden = new Set();
const parts = new Map();  // number -> everything that shows it
function enhance(place) {
  for (const element of place.querySelectorAll("[data-run]")) {
    const { run } = element.dataset;
    // What stands in a strip chart is a name and the drawing beside it.
    const shown = element.classList.contains("who") ? [element, element.nextElementSibling] : [element];
    if (!parts.has(run)) parts.set(run, []);
    parts.get(run).push(...shown);
    for (const each of shown) each.classList.toggle("filtered", hidden.has(run));
  }
  for (const table of place.querySelectorAll("table.sortable")) sortable(table);
  for (const table of place.querySelectorAll("table")) shorten(table);
}
enhance(document);

// Of many runs, what is folded away is text until it is opened.
addEventListener("toggle", (event) => {
  const text = event.target.querySelector?.(":scope > script[type='text/plain']");
  if (!text) return;
  const place = make("div", {});
  place.innerHTML = text.textContent;
  text.replaceWith(place);
  enhance(place);
}, true);

function buildFilters() {
  const words = make("input", { type: "search", id: "filter-words", autocomplete: "off" });
  const front = make("input", { type: "checkbox", id: "filter-front" });
  const count = make("p", { className: "note" });
  count.setAttribute("role", "status");
  const selects = [];
  const form = make("fieldset", { className: "card filters" }, make("legend", {}, "Show"),
    make("div", { className: "field" }, make("label", { htmlFor: words.id }, "Runs with"), words));
  for (const [name, title] of facets) {
    const values = [...new Set([...runs.values()].map((run) => run[name]))].filter(Boolean).sort();
    if (values.length < 2) continue;
    const select = make("select", { id: `filter-${name}` }, make("option", { value: "" }, "all"),
      ...values.map((value) => make("option", { value }, value)));
    selects.push([name, select]);
    form.append(make("div", { className: "field" }, make("label", { htmlFor: select.id }, title), select));
  }
  if ([...runs.values()].some((run) => run.front)) {
    form.append(make("div", { className: "field tick" }, front, make("label", { htmlFor: front.id }, "front only")));
  }
  form.append(count);
  const apply = () => {
    const sought = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    hidden.clear();
    for (const [number, run] of runs) {
      const passes = sought.every((word) => run.text.includes(word)) && (!front.checked || run.front) &&
        selects.every(([name, select]) => !select.value || run[name] === select.value);
      if (!passes) hidden.add(number);
      for (const element of parts.get(number)) element.classList.toggle("filtered", !passes);
    }
    for (const table of document.querySelectorAll("table")) limit(table);
    for (const path of document.querySelectorAll("[data-runs]")) {
      path.classList.toggle("filtered", path.dataset.runs.split(" ").every((number) => hidden.has(number)));
    }
    count.textContent = `${runs.size - hidden.size} of ${runs.size} runs`;
  };
  let waiting = 0;
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 120); });
  document.getElementById("filters").append(form);
  apply();
}
if (runs.size > 3) buildFilters();

// The reader chooses whose lines are drawn.
const MOST = 8;
for (const place of document.querySelectorAll("[data-overlays]")) {
  const table = [...place.parentElement.querySelectorAll("table.runs")]
    .find((each) => each.compareDocumentPosition(place) & Node.DOCUMENT_POSITION_FOLLOWING &&
      each.querySelector(`tr[data-run="${place.querySelector("li").dataset.run}"]`));
  if (!table || table.tBodies[0].rows.length < 2) continue;
  const series = new Map();
  for (const item of place.querySelectorAll("li")) {
    series.set(item.dataset.run, Number(item.querySelector("line").getAttribute("class").match(/s(\d)/)[1]));
  }
  const list = place.querySelector("ul");
  const names = new Map();
  const drawn = new Set([...place.querySelectorAll("path[data-runs]")].flatMap((path) => path.dataset.runs.split(" ")));
  const draw = () => {
    for (const path of place.querySelectorAll("path[data-runs]")) {
      const colour = path.dataset.runs.split(" ").map((number) => series.get(number)).find((each) => each !== undefined);
      const dots = path.classList.contains("dots") ? " dots" : "";
      const away = path.classList.contains("filtered") ? " filtered" : "";
      path.setAttribute("class", (colour === undefined ? "line off" : `line s${colour}`) + dots + away);
    }
    list.replaceChildren(...[...series].map(([number, colour]) => {
      const item = make("li", {});
      item.dataset.run = number;
      item.innerHTML = `<svg class="swatch" width="26" height="10" aria-hidden="true"><line class="line s${colour}" x1="1" x2="25" y1="5" y2="5"/></svg> `;
      item.append(names.get(number));
      item.classList.toggle("filtered", hidden.has(number));
      parts.get(number).push(item);
      return item;
    }));
  };
  for (const row of table.tBodies[0].rows) {
    const { run } = row.dataset;
    const detail = row.cells[0].querySelector(".detail").textContent;
    names.set(run, `#${run} ${row.cells[0].querySelector(".name").textContent} ${detail}`);
    if (!drawn.has(run)) continue;
    const box = make("input", { type: "checkbox", className: "draw", checked: series.has(run) });
    box.setAttribute("aria-label", `Draw run ${run} in the charts`);
    box.addEventListener("change", () => {
      if (!box.checked) series.delete(run);
      else if (series.size >= MOST) { box.checked = false; return; }
      else series.set(run, [...Array(MOST).keys()].find((each) => ![...series.values()].includes(each)));
      draw();
    });
    row.cells[0].prepend(box, " ");
  }
  place.querySelector(".pick-hint").hidden = false;
}

// On paper a few runs are shown in full, and a thousand are not.
const MOST_PRINTED = 24;
let opened = [];
addEventListener("beforeprint", () => {
  const folded = [...document.querySelectorAll("details:not([open])")];
  opened = folded.length <= MOST_PRINTED ? folded : [];
  for (const each of opened) each.open = true;
});
addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
