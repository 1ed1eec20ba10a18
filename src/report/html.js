// Shows the rows and problems that have one of the ticked verdicts.
const form = document.querySelector("form");
const apply = () => {
  const wanted = new Set([...form.querySelectorAll("input:checked")].map((box) => box.value));
  const shown = (element) => element.dataset.verdicts.split(" ").some((name) => wanted.has(name));
  for (const element of document.querySelectorAll("[data-verdicts]")) element.hidden = !shown(element);
  for (const area of document.querySelectorAll("tr.area")) {
    let row = area.nextElementSibling;
    while (row && row.hidden && !row.classList.contains("area")) row = row.nextElementSibling;
    area.hidden = !row || row.classList.contains("area");
  }
};
form.addEventListener("change", apply);
form.hidden = false;
apply();
