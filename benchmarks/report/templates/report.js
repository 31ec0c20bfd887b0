"use strict";
(() => {
  const table = document.getElementById("cases");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[1].cells];
  const rows = [...body.rows];

  // Numbers sort as numbers, text by the reader's alphabet, and what is missing stands last either way.
  function compare(a, b) {
    if (a === "" || b === "") return null;
    const difference = Number(a) - Number(b);
    return Number.isNaN(difference) ? a.localeCompare(b) : difference;
  }

  function sortBy(column) {
    const head = heads[column];
    const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", other === head ? direction : "none"));
    const sign = direction === "ascending" ? 1 : -1;
    const value = (row) => row.cells[column].dataset.order;
    rows.sort((one, other) => {
      const order = compare(value(one), value(other));
      return order === null ? (value(one) === "") - (value(other) === "") : sign * order;
    });
    body.append(...rows);
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(column));
    head.append(button);
  });

  const controls = document.getElementById("controls");
  const words = document.getElementById("filter");
  const boxes = [...controls.querySelectorAll("input[name=strategy]")];
  const count = document.getElementById("count");

  const split = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);

  function filter() {
    const wanted = split(words.value);
    const chosen = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    for (const row of rows) {
      const found = wanted.every((word) => split(row.dataset.words).some((own) => own.startsWith(word)));
      row.hidden = !(found && chosen.has(row.dataset.strategy));
    }
    count.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} cases`;
  }

  controls.addEventListener("input", filter);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.hidden = false;
  filter();
})();
