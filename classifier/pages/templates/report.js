// Sorts a table by the column whose header is clicked: numbers by value, missing ones last, the rest by the alphabet.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement, table = header.closest("table"), body = table.tBodies[0];
    const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    const text = (row) => row.cells[header.cellIndex].textContent.trim();
    const number = (row) => parseFloat(text(row).replaceAll(",", ""));
    const compare = (a, b) => {
      if (!header.classList.contains("number")) return sign * text(a).localeCompare(text(b), undefined, { numeric: true });
      const [x, y] = [number(a), number(b)];
      return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y) || 0;
    };
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    body.append(...[...body.rows].sort(compare));
  });
}
