"use strict";
(() => {
  // Charts: the lines that are chosen stand out.
  for (const charting of document.querySelectorAll(".charting")) {
    const buttons = [...charting.querySelectorAll(".lines button")];
    const pressed = (button) => button.getAttribute("aria-pressed") === "true";
    charting.addEventListener("click", (event) => {
      const button = event.target.closest(".lines button");
      if (!button) return;
      button.setAttribute("aria-pressed", !pressed(button));
      const chosen = new Set(buttons.filter(pressed).map((one) => one.dataset.series));
      for (const line of charting.querySelectorAll(".series"))
        line.classList.toggle("faded", chosen.size > 0 && !chosen.has(line.dataset.series));
    });
  }
  // Tables: a column's head sorts the rows of each group, the greatest first; pressed again, the least.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    table.tHead.addEventListener("click", (event) => {
      const head = event.target.closest("button")?.closest("th");
      if (!head) return;
      const column = heads.indexOf(head), sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
        const value = (row) => +row.cells[column].dataset.v;
        body.append(...rows.sort((a, b) => sign * (value(a) - value(b))));
      }
    });
  }
})();
