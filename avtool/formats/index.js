"use strict";
(() => {
  const body = document.querySelector("#files tbody");
  const rows = [...body.rows];
  const heads = [...document.querySelectorAll("th[data-key]")];
  const numeric = new Set(["duration", "events", "warnings"]);
  const by = (key) => (a, b) =>
    numeric.has(key) ? Number(a.dataset[key]) - Number(b.dataset[key]) : a.dataset[key].localeCompare(b.dataset[key]);
  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.ariaSort === "ascending" || (!head.ariaSort && numeric.has(head.dataset.key));
      for (const other of heads) other.ariaSort = null;
      head.ariaSort = down ? "descending" : "ascending";
      const sorted = [...rows].sort(by(head.dataset.key));
      body.append(...(down ? sorted.reverse() : sorted));
    });
  }
  const find = () => {
    const words = document.getElementById("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = `${row.dataset.name} ${row.dataset.classes}`.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    document.getElementById("count").textContent = words.length ? `${shown} of ${rows.length}` : "";
  };
  document.getElementById("words").addEventListener("input", find);
  document.getElementById("find").hidden = false;
  find();
})();
