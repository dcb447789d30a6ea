// Names the cells of wide tables, which paper shows row below row, and sorts a table by the column whose head is clicked.
for (const table of document.querySelectorAll(".many"))
  for (const row of table.tBodies[0].rows)
    for (const cell of row.cells) cell.dataset.name = table.tHead.rows[0].cells[cell.cellIndex].textContent;

for (const head of document.querySelectorAll("th")) {
  head.tabIndex = 0;
  head.onkeydown = event => { if (event.key === "Enter") head.click() };
  head.onclick = () => {
    const table = head.closest("table"), at = head.cellIndex, up = head.ariaSort !== "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.ariaSort = up ? "ascending" : "descending";
    const value = row => {
      const { textContent: text, dataset } = row.cells[at];
      return [text === "-", "n" in dataset ? Number(dataset.n) : text];
    };
    const rows = [...table.tBodies[0].rows].sort((one, two) => {
      const [none, a] = value(one), [nothing, b] = value(two), order = (a > b) - (a < b);
      return none - nothing || (up ? order : -order);
    });
    table.tBodies[0].append(...rows);
  };
}
