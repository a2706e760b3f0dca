// Sorting, filtering and hiding for the tables of a page that is complete without it.
"use strict";
const make = (name, given = {}, ...inside) => {
  const made = Object.assign(document.createElement(name), given);
  made.append(...inside);
  return made;
};
// "5,000" is found and sorted as 5000.
const ungrouped = (text) => text.replace(/(\d),(?=\d)/g, "$1");
const key = (cell) => {
  const value = cell?.dataset.v ?? cell?.textContent.trim() ?? "";
  const number = value === "" ? NaN : Number(ungrouped(value));
  return Number.isNaN(number) ? value : number;
};
const compare = (a, b) => {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (a === "" || b === "") return (a === "") - (b === "");
  return String(a).localeCompare(String(b), undefined, { numeric: true });
};

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    const button = make("button", { type: "button", title: "sort" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falls = head.ariaSort === "ascending";
      for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
      head.ariaSort = falls ? "descending" : "ascending";
      const rows = [...body.rows].map((row) => [key(row.cells[place]), row]);
      rows.sort(([a], [b]) => (falls ? compare(b, a) : compare(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  const texts = rows.map((row) => ungrouped(row.textContent.toLowerCase()));
  const shown = make("output", { textContent: `${rows.length.toLocaleString("en")} rows` });
  const field = make("input", { type: "search", placeholder: "every word must occur" });
  field.addEventListener("input", () => {
    const words = ungrouped(field.value.toLowerCase()).split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, place) => {
      const kept = words.every((word) => texts[place].includes(word));
      row.hidden = !kept;
      count += kept;
    });
    shown.textContent = `${count} of ${rows.length} rows`;
  });
  return [make("label", {}, "filter ", field), shown];
}

function hideable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const boxes = heads.map((head, place) => {
    const box = make("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      for (const row of table.rows) row.cells[place].hidden = !box.checked;
    });
    return make("label", {}, box, ` ${head.textContent}`);
  });
  return make("details", {}, make("summary", { textContent: "columns" }), ...boxes);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const columns = hideable(table);
  sortable(table);
  const tools = make("div", { className: "tools" }, ...filterable(table), columns);
  table.closest(".scroll").before(tools);
}

const contents = document.querySelector("nav");
if (contents && document.querySelector("tr[data-violated]")) {
  const box = make("input", { type: "checkbox" });
  box.addEventListener("change", () => {
    document.body.classList.toggle("only-violated", box.checked);
    if (box.checked) document.querySelectorAll("section details").forEach((d) => (d.open ||= d.querySelector("tr[data-violated]") !== null));
  });
  const note = "of theorems and of disputed statements; what is undecided is hidden";
  contents.append(make("label", {}, box, " only violated rows", make("small", { textContent: note })));
}

// A link to something folded opens it.
const open = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let d = target.closest("details"); d; d = d.parentElement.closest("details")) d.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", open);
open();

// The section in sight is marked in the contents.
const links = new Map([...contents?.querySelectorAll("a") ?? []].map((a) => [a.hash.slice(1), a]));
const heads = [...document.querySelectorAll("h2[id]")].filter((head) => links.has(head.id));
const mark = () => {
  const here = heads.findLast((head) => head.getBoundingClientRect().top < 120) ?? heads[0];
  for (const [id, link] of links) {
    if (id === here?.id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
};
addEventListener("scroll", mark, { passive: true });
mark();

// Print shows what is folded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("main details:not([open])")];
  folded.forEach((d) => (d.open = true));
});
addEventListener("afterprint", () => folded.forEach((d) => (d.open = false)));
