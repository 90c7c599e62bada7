// The page's one script: headers of a table become buttons that sort its rows (once upwards, twice downwards, three times
// as drawn). Without it the tables are plain. Nothing of the page's text is read as markup.
const collator = new Intl.Collator("en", {numeric: true});
const number = /^[-−+]?[\d,]*\.?\d+(e[-+]?\d+)?(?!\w)/;  // "12.3 ± 0.4", "1,234", "5e-5", "80:20"
const value = text => parseFloat(text.match(number)[0].replaceAll(",", "").replace("−", "-"));

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], drawn = [...body.rows], heads = [...table.tHead?.rows[0].cells ?? []];
  if (drawn.length < 2) continue;  // nothing to sort
  heads.forEach((head, column) => {
    const text = row => row.cells[column].textContent.trim();
    const missing = row => ["", "–"].includes(text(row));
    if (!head.textContent.trim()) return;  // a button needs a name
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = {none: "ascending", ascending: "descending", descending: "none"}[head.ariaSort ?? "none"];
      const sign = next === "descending" ? -1 : 1, there = drawn.filter(row => !missing(row));
      const key = there.every(row => number.test(text(row))) ? value : null;
      const compare = (a, b) => sign * (key ? key(text(a)) - key(text(b)) : collator.compare(text(a), text(b)));
      for (const other of heads) other.removeAttribute("aria-sort");
      if (next !== "none") head.setAttribute("aria-sort", next);
      body.append(...(next === "none" ? drawn : [...there.sort(compare), ...drawn.filter(missing)]));
    });
  });
}
