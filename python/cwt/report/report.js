"use strict";
const all = (what, where = document) => [...where.querySelectorAll(what)];

// The points of the first figure: what is pointed at, touched or focused is told below it.
const told = document.getElementById("told");
for (const point of all(".point"))
  for (const event of ["pointerenter", "focus", "click"])
    point.addEventListener(event, () => { told.textContent = point.getAttribute("aria-label"); });

// The curves: one cursor through all of them, moved by the pointer or by the arrow keys.
const curves = all("svg.curves").map(svg => ({ svg, data: JSON.parse(svg.dataset.curves) }));
let at = -1;
function show(i) {
  at = Math.max(0, Math.min(curves[0].data.x.length - 1, i));
  for (const { svg, data } of curves) {
    const cursor = svg.querySelector(".cursor");
    cursor.removeAttribute("hidden");
    cursor.setAttribute("transform", `translate(${data.px[at]} 0)`);
    const values = data.names.map((name, m) => `${name} ${data.values[m][at] ?? "-"}`.replaceAll(" ", "\u00a0"));
    svg.parentElement.querySelector(".readout").textContent =
      `At ${data.x[at].toLocaleString("en")} loss tokens: ${values.join(", ")}.`;
  }
}
for (const { svg, data } of curves) {
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const distances = data.px.map(px => Math.abs(px - x));
    show(distances.indexOf(Math.min(...distances)));
  });
  svg.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); show(at + step); }
  });
}

// The examples: words that must occur in the question or in a sentence, and what must be among them.
const words = document.getElementById("words"), only = document.getElementById("only");
const examples = all(".example").map(element => ({
  element,
  text: all("summary, .unit", element).map(part => part.textContent).join("\n").toLowerCase(),
  units: all(".unit", element).map(unit => ({
    skipped: unit.classList.contains("skipped"), decided: "decided" in unit.dataset, role: unit.dataset.role })),
}));
const tests = {
  all: () => true,
  skipped: unit => unit.skipped,
  stayed: unit => unit.decided && !unit.skipped,
  role: (unit, role) => unit.skipped && unit.role === role,
};
function filter() {
  const { test, role } = only.selectedOptions[0].dataset;
  let shown = 0;
  for (const { element, text, units } of examples) {
    const fits = text.includes(words.value.toLowerCase()) && units.some(unit => tests[test](unit, role));
    element.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  document.getElementById("shown").textContent = `${shown} of ${examples.length} examples`;
}
words.addEventListener("input", filter);
only.addEventListener("change", filter);
document.querySelector(".controls").hidden = false;
filter();
