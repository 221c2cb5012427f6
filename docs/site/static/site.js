/* What the theme and the gallery leave out for screen readers: names that agree with what is to be seen. */
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".search-button-field").forEach((button) => {
    if (button.innerText.trim()) button.removeAttribute("aria-label");  // on a phone the button is a symbol alone
  });
  document.querySelectorAll(".sphx-glr-thumbcontainer a").forEach((link) => link.setAttribute("aria-label", link.textContent));
});
