// Opened as a file, a page may not fetch another one: the results of a search are then shown without excerpts.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// A field above the tables of the zoo's configs hides rows without its words.
addEventListener("DOMContentLoaded", () => {
  const page = document.querySelector("#all-configs-of-the-zoo");
  if (!page) return;
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "config, head, backbone, not proven ...";
  field.className = "zoo-filter";
  page.querySelector("p").after(field);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of page.querySelectorAll("tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
});
