"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, root) => [...(root || document).querySelectorAll(selector)];
const SVG = "http://www.w3.org/2000/svg";
const make = (name, attributes, text) => {
  const element = document.createElementNS(SVG, name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  return element;
};

// What needs a script is hidden until there is one.
for (const element of all(".pick, .tools")) element.hidden = false;

// Arms can be switched off, everywhere at once; in a study whole architectures (colours) and optimizers (marks).
const off = new Set();
const hidden = ({arm, shape}) => off.has(arm) || off.has("c" + arm % data.colours) || off.has("m" + shape);
const paint = () => {
  for (const group of all("[data-arm]")) group.classList.toggle("off", hidden(group.dataset));
  for (const button of all("[data-toggle]")) button.setAttribute("aria-pressed", String(!off.has(button.dataset.toggle)));
};
for (const button of all("[data-toggle]")) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const arm = button.dataset.toggle;
    if (!off.delete(arm)) off.add(arm);
    paint();
  });
}

// The cloud: one drawing, moved to the chosen quantizer.
const cloud = data.cloud, points = data.points;
const sqnr = (quantizer, i) => {
  const triple = cloud.quantizers[quantizer].sqnr.slice(3 * i, 3 * i + 3);
  return triple === "---" ? null : (parseInt(triple, 36) - 10000) / 100;
};
const chosen = () => {
  const select = document.querySelector('[data-for="cloud"]');
  return select ? select.value : cloud.first;
};
function moveCloud() {
  const svg = document.getElementById("cloud-chart"), picked = cloud.quantizers[chosen()], f = cloud.frame;
  const height = f.height - f.top - f.bottom, right = f.width - f.right, {low, high} = cloud.x;
  const across = (k) => (f.left + (Math.log(Math.max(k, -2.9) + 3) - low) / (high - low) * (right - f.left)).toFixed(1);
  const up = (value) => (f.top + (picked.high - value) / (picked.high - picked.low) * height).toFixed(1);
  const filled = new Set();  // arms drawn alike share a style: the first of them takes the points of all
  for (const group of all("[data-arm]", svg)) {
    all("use", group).forEach((mark) => mark.remove());
    if (filled.has(group.dataset.arm)) continue;
    filled.add(group.dataset.arm);
    points.kurtosis.forEach((k, i) => {
      const value = sqnr(chosen(), i);
      if (value === null || points.style[points.arm[i]] !== Number(group.dataset.arm)) return;
      group.append(make("use", {href: "#m" + group.dataset.shape, x: across(k), y: up(value), "data-i": i}));
    });
  }
  const axis = svg.querySelector(".axis.y");
  const lines = picked.ticks.map(([at]) => "M" + f.left + " " + up(at) + "H" + right).join("");
  axis.replaceChildren(make("path", {d: lines}), ...picked.ticks.map(([at, label]) =>
    make("text", {x: f.left - 5, y: up(at)}, label)));
  for (const rule of all(".rule.y", svg)) rule.remove();
  if (picked.gaussian !== null) {
    const rule = make("g", {class: "rule y"}), y = up(picked.gaussian);
    rule.append(make("path", {d: "M" + f.left + " " + y + "H" + right}),
      make("text", {x: right, y: y, dy: "-4"}, picked.label));
    svg.querySelector(".rule.x").after(rule);
  }
  svg.querySelector("title").textContent = chosen();
  svg.querySelector("desc").textContent = picked.summary;
  document.getElementById("cloud-summary").textContent = picked.summary;
}

for (const select of all("[data-for]")) {
  select.addEventListener("change", () => {
    if (select.dataset.for === "cloud") return moveCloud();
    const variants = all('[data-figure="' + select.dataset.for + '"] .variant');
    for (const variant of variants) variant.hidden = variant.dataset.variant !== select.value;
  });
}

const point = (i) => [points.arms[points.arm[i]], points.seed[i], points.sites[points.site[i]], points.kurtosis[i]];
if (cloud) {
  moveCloud();  // the drawing that came with the page does not number its points
  const tip = document.querySelector(".tip");
  document.getElementById("cloud-chart").addEventListener("pointerover", (event) => {
    const i = event.target.dataset ? event.target.dataset.i : undefined;
    if (i === undefined) return;
    const [arm, seed, site, kurtosis] = point(i);
    tip.textContent = arm + ", seed " + seed + ", " + site + ": kurtosis " + kurtosis + ", SQNR " + sqnr(chosen(), i) + " dB";
  });
}

// CSV of what is behind a chart, as measured, whatever is on display.
const tables = data.tables;
const columns = ["arm", "seed", "site", "excess_kurtosis"];
tables.depth = () => ({columns, rows: points.kurtosis.map((_, i) => point(i))});
tables.cloud = () => {
  const quantizers = Object.keys(cloud.quantizers);
  return {
    columns: [...columns, ...quantizers.map((name) => "sqnr_db " + name)],
    rows: points.kurtosis.map((_, i) => [...point(i), ...quantizers.map((name) => sqnr(name, i))]),
  };
};
const field = (value) => {
  let text = value === null ? "" : String(value);
  if (typeof value === "string" && /^[=+@\t\r-]/.test(text)) text = "'" + text;  // no formulas in a spreadsheet
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
};
const column = ({values, runs, known, width, at}) => {
  if (values) return values;
  if (runs) return runs.flatMap((value, i) => i % 2 ? [] : Array(runs[i + 1]).fill(value));
  return Array.from({length: at.length / width}, (_, i) => known[parseInt(at.slice(i * width, (i + 1) * width), 36)]);
};
const unfolded = (table) => {
  if (!table.folded) return table;
  const found = table.folded.map(column);
  return {columns: table.columns, rows: found[0].map((_, i) => found.map((one) => one[i]))};
};
const csv = (name) => {
  const table = typeof tables[name] === "function" ? tables[name]() : unfolded(tables[name]);
  const spelled = (row) => row.map((value, i) => table.words && table.words[i] ? table.words[i][value] : value);
  return [table.columns, ...table.rows.map(spelled)].map((row) => row.map(field).join(",") + "\r\n").join("");
};
for (const button of all("[data-csv]")) {
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(button.dataset.csv)], {type: "text/csv"}));
    link.download = data.name + "-" + button.dataset.csv + ".csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
