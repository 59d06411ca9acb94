"use strict";
// Rows are put into the page as text, never as markup: what a submission says stays what it says.
const data = JSON.parse(document.getElementById("data").textContent);
const column = Object.fromEntries(data.columns.map((name, index) => [name, index]));
const rows = data.rows.map((row) => row.map((value, i) => (data.words[i] ? data.words[i][value] : value)));
const get = (row, name) => row[column[name]];
const element = (id) => document.getElementById(id);
const PAGE = 50;
const state = { sort: "rank_best", down: false, page: 0 };

const POWERS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const digits = (value, count) => {
  if (value === null) return "—";
  if (value !== 0 && Math.abs(value) < 1e-4) {
    const [head, power] = value.toExponential(count - 1).split("e-");
    return head.replace("-", "−") + "×10⁻" + [...power].map((digit) => POWERS[digit]).join("");
  }
  return String(Number(value.toPrecision(count))).replace("-", "−");
};
const size = (bytes) => {
  if (bytes === null) return "—";
  const power = Math.min(4, Math.max(0, Math.floor((String(bytes).length - 1) / 3)));
  return digits(bytes / 1000 ** power, 3) + " " + ["B", "kB", "MB", "GB", "TB"][power];
};
const rank = (row) => {
  const best = get(row, "rank_best"), worst = get(row, "rank_worst"), ring = get(row, "front") ? " ◎" : "";
  return best === null ? "—" : (best === worst ? best : best + "–" + worst) + ring;
};
const provenance = (row) => {
  const by = get(row, "superseded_by");
  return get(row, "provenance") + (by ? "; superseded by " + by : "");
};
// Name shown, column sorted by, what the cell says, which page it leads to.
const COLUMNS = [
  ["Rank", "rank_best", rank],
  ["Model", "model", (row) => get(row, "model"), (row) => data.pages.model[get(row, "model")]],
  ["Format", "quantizer", (row) => get(row, "quantizer"), (row) => data.pages.quantizer[get(row, "quantizer")]],
  ["Bits", "bits_per_value", (row) => digits(get(row, "bits_per_value"), 3)],
  ["Value", "value", (row) => get(row, "measured")],
  ["Cost", "increase", (row) => get(row, "cost")],
  ["n", "n", (row) => String(get(row, "n"))],
  ["Seeds", "seeds", (row) => String(get(row, "seeds"))],
  ["Seed floor", "seed_floor", (row) => digits(get(row, "seed_floor"), 2)],
  ["Window floor", "window_floor", (row) => digits(get(row, "window_floor"), 2)],
  ["Bytes", "bytes", (row) => size(get(row, "bytes"))],
  ["Date", "date", (row) => get(row, "date")],
  ["Commit", "commit", (row) => get(row, "commit").slice(0, 8) || "—"],
  ["Provenance", "provenance", provenance],
  ["Group", "group", (row) => data.groups[get(row, "group")][1], (row) => "groups/" + data.groups[get(row, "group")][0] + ".html"],
];

const WORDS = ["model", "quantizer", "provenance", "group"];

const order = (a, b) => {
  const x = get(a, state.sort), y = get(b, state.sort);
  if (x === y) return 0;
  if (x === null || y === null) return x === null ? 1 : -1; // what was not measured stands last, either way
  const sign = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
  return state.down ? -sign : sign;
};

const chosen = () => {
  const words = element("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const group = element("group").value, label = element("label").value;
  return rows.filter((row) => {
    if (group !== "" && get(row, "group") !== Number(group)) return false;
    if (label && get(row, "provenance") !== label) return false;
    if (element("front").checked && !get(row, "front")) return false;
    const text = ["model", "quantizer", "submission", "who"].map((name) => get(row, name)).join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
};

const cell = (row, [title, name, text, page], index) => {
  const td = document.createElement(index === 1 ? "th" : "td");
  if (index === 1) td.scope = "row";
  if (WORDS.includes(name)) td.className = "t";
  td.dataset.l = title;
  const target = page ? document.createElement("a") : td;
  target.textContent = text(row);
  if (page) { target.href = page(row); td.append(target); }
  return td;
};

const draw = () => {
  const found = chosen().sort(order);
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const body = document.querySelector("#table tbody");
  body.replaceChildren(...found.slice(state.page * PAGE, (state.page + 1) * PAGE).map((row) => {
    const line = document.createElement("tr");
    if (get(row, "superseded_by")) line.className = "gone";
    line.append(...COLUMNS.map((one, index) => cell(row, one, index)));
    return line;
  }));
  document.querySelectorAll("#table thead th").forEach((head, i) => {
    head.setAttribute("aria-sort", COLUMNS[i][1] === state.sort ? (state.down ? "descending" : "ascending") : "none");
  });
  element("count").textContent = found.length === 1 ? "1 row" : found.length + " rows";
  element("at").textContent = "page " + (state.page + 1) + " of " + pages;
  element("before").disabled = state.page === 0;
  element("after").disabled = state.page >= pages - 1;
  element("pager").hidden = pages === 1;
};

const head = document.querySelector("#table thead tr");
for (const [title, name] of COLUMNS) {
  const th = document.createElement("th"), button = document.createElement("button");
  th.scope = "col";
  if (WORDS.includes(name)) th.className = "t";
  button.type = "button";
  button.textContent = title;
  button.addEventListener("click", () => {
    state.down = state.sort === name && !state.down;
    state.sort = name;
    state.page = 0;
    draw();
  });
  th.append(button);
  head.append(th);
}
for (const id of ["search", "group", "label", "front"]) {
  element(id).addEventListener("input", () => { state.page = 0; draw(); });
}
element("controls").addEventListener("submit", (event) => event.preventDefault());
element("before").addEventListener("click", () => { state.page -= 1; draw(); });
element("after").addEventListener("click", () => { state.page += 1; draw(); });
element("controls").hidden = element("table").hidden = false;
draw();
