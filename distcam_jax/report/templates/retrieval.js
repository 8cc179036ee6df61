const comparisons = {
  worst: (one, other) => one - other,
  best: (one, other) => other - one,
};

function ordered(bodies, name) {
  const given = [...bodies].sort((one, other) => one.dataset.given - other.dataset.given);
  if (name === "given") return given;
  const precision = (body) => Number(body.dataset.precision);
  const known = given.filter((body) => body.dataset.precision !== "");
  known.sort((one, other) => comparisons[name](precision(one), precision(other))); // equal ones stay as given
  return [...known, ...given.filter((body) => body.dataset.precision === "")];
}

for (const searches of document.querySelectorAll(".searches")) {
  const choices = searches.querySelector(".choices");
  const table = searches.querySelector("table");
  const order = choices.querySelector("select");
  const buttons = [...choices.querySelectorAll("button")];

  function sort() {
    table.append(...ordered([...table.tBodies], order.value));
  }

  function choose(method) {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.value === method));
    for (const row of table.querySelectorAll("[data-method]")) {
      row.hidden = method !== "all" && row.dataset.method !== method;
    }
  }

  order.addEventListener("change", () => {
    sort();
    // the first query of the order is what one wants to see
    if (table.getBoundingClientRect().top < choices.getBoundingClientRect().bottom) table.scrollIntoView();
  });
  for (const button of buttons) button.addEventListener("click", () => choose(button.value));
  choices.hidden = false;
  sort(); // a browser may remember another order
  if (buttons.length) choose(buttons[0].value);
}
