// Each checkbox shows or hides what carries its name: rows, marks of plots, pictures.
for (const box of document.querySelectorAll("[data-switch]")) {
  box.addEventListener("change", () => {
    for (const element of document.querySelectorAll(`[data-${box.dataset.switch}]`))
      if (element.dataset[box.dataset.switch] === box.value) element.toggleAttribute("hidden", !box.checked);
  });
}
