/* What the theme and the gallery leave out for screen readers, names that agree with what is to be seen; and labels of
   cells, for phones. */
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".search-button-field").forEach((button) => {
    if (button.innerText.trim()) button.removeAttribute("aria-label");  // on a phone the button is a symbol alone
  });
  document.querySelectorAll(".sphx-glr-thumbcontainer a").forEach((link) => link.setAttribute("aria-label", link.textContent));
  document.querySelectorAll(".bd-article table").forEach((table) => {
    const labels = [...table.querySelectorAll("thead th")].map((heading) => heading.textContent);
    if (labels.length < 3) return;
    table.classList.add("cards");
    for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, i) => {
      if (cell.textContent.trim()) cell.dataset.label = labels[i];
    });
  });
});
