// Tables whose rows sort by a click on a heading. Without it the page lacks nothing but this.
(() => {
  const value = (row, at) => {
    const cell = row.cells[at];
    return cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent;
  };
  const compare = (a, b) => {
    const x = parseFloat(a), y = parseFloat(b);
    if (isNaN(x) || isNaN(y)) return isNaN(x) === isNaN(y) ? a.localeCompare(b) : isNaN(x) ? 1 : -1;
    return x - y;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, at) => {
      heading.tabIndex = 0;
      heading.setAttribute("role", "button");
      const sort = () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a, at), value(b, at)));
        table.tBodies[0].append(...(down ? rows.reverse() : rows));
      };
      heading.addEventListener("click", sort);
      heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
    });
  }
})();
