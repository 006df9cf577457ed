// The classes: colour, probability and share of each, whether it is shown, its map, and which of them paints.

import { UNKNOWN } from "./painter.js";

const percent = (value) => (value > 0 && value < 0.001 ? "< 0.1 %" : `${(100 * value).toFixed(1)} %`);

export class Legend {
  constructor(list, classes, { shown, map, clear }) {
    this.rows = new Map();
    this.list = list;
    classes.forEach(({ name, colour }, label) => this.add(label, name, colour));
    this.add(UNKNOWN, "unknown", null);
    list.addEventListener("change", (event) => {
      if (event.target.type === "checkbox") shown(Number(event.target.value), event.target.checked);
    });
    list.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button?.name === "clear") clear(Number(button.value));
      if (button?.name === "map") map(button.getAttribute("aria-pressed") === "true" ? null : Number(button.value));
    });
    this.choose(Math.min(1, classes.length - 1));
  }

  add(label, name, colour) {
    const row = element("li");
    const painting = element("label", { className: "class" });
    painting.append(
      element("input", { type: "radio", name: "paint", value: label }),
      element("span", { className: colour ? "swatch" : "swatch unknown" }),
      element("b", { textContent: name }),
    );
    if (colour && label) painting.children[1].style.background = `rgb(${colour.join(" ")})`;
    const said = element("small");
    painting.children[2].append(said);
    row.append(painting);
    const clear = button("clear", label, "\u00d7", `Clear ${name}: all of it becomes background`);
    if (label > 0) {
      const shown = element("input", { type: "checkbox", checked: true, value: label, title: "Show" });
      shown.setAttribute("aria-label", `Show ${name}`);
      row.append(shown, clear);
    }
    if (label > 0 && label !== UNKNOWN) {
      const map = button("map", label, "Map", `Map of ${name}: where it is likely`);
      map.setAttribute("aria-pressed", "false");
      row.append(map);
    }
    this.list.append(row);
    this.rows.set(label, { row, said, clear });
  }

  // Found classes first, each with what the model says of it; the background and unknown frame them.
  tell(probabilities, counts, found) {
    const total = counts.reduce((sum, count) => sum + count, 0);
    for (const [label, { row, said, clear }] of this.rows) {
      const share = counts[label] / total;
      const parts = [];
      if (label > 0 && probabilities?.[label] !== undefined) parts.push(`${percent(probabilities[label])} likely`);
      if (counts[label]) parts.push(`${percent(share)} of the photo`);
      said.textContent = parts.join(", ");
      said.title = parts.length ? "The greatest probability anywhere in the photo, and the share of its pixels" : "";
      row.classList.toggle("absent", !counts[label]);
      clear.disabled = !counts[label];
    }
    if (!found) return;
    const order = [...this.rows.keys()].filter((label) => label > 0 && label !== UNKNOWN);
    const by = (label) => (counts[label] ? 1 + counts[label] / total : (probabilities?.[label] ?? 0) / 2);
    order.sort((a, b) => by(b) - by(a) || a - b);
    this.list.append(...[0, ...order, UNKNOWN].map((label) => this.rows.get(label).row));
  }

  choose(label) {
    const input = this.list.querySelector(`input[name=paint][value="${label}"]`);
    if (input) input.checked = true;
  }

  press(label) {
    for (const button of this.list.querySelectorAll("button[name=map]")) {
      button.setAttribute("aria-pressed", String(label !== null && Number(button.value) === label));
    }
  }

  get paint() {
    return Number(this.list.querySelector("input[name=paint]:checked").value);
  }
}

function button(name, label, textContent, title) {
  const made = element("button", { type: "button", name, value: label, textContent, title });
  made.setAttribute("aria-label", title);
  return made;
}

export function element(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}
