// The photos of the data set: searched, filtered, a screenful at a time.

import { element } from "./legend.js";
import * as server from "./server.js";

const AT_ONCE = 60;
const TESTS = {
  all: () => true,
  unmasked: (one) => !one.masked,
  masked: (one) => one.masked,
  val: (one) => one.place === "val",
};

export class Gallery {
  constructor({ list, search, filter, count, more }, open) {
    Object.assign(this, { list, search, filter, count, more, open, photos: [], shown: AT_ONCE, current: null });
    search.addEventListener("input", () => this.draw());
    filter.addEventListener("change", () => this.draw());
    more.addEventListener("click", () => {
      this.shown += AT_ONCE;
      this.draw();
    });
  }

  async load() {
    this.photos = await server.pictures();
    this.draw();
  }

  draw() {
    const part = this.search.value.trim().toLowerCase();
    const some = this.photos.filter((one) => TESTS[this.filter.value](one) && one.id.toLowerCase().includes(part));
    this.count.textContent = `${some.length} of ${this.photos.length} photos`;
    this.more.hidden = some.length <= this.shown;
    this.list.replaceChildren(...some.slice(0, this.shown).map((one) => this.item(one)));
    this.mark(this.current);
  }

  item(one) {
    const button = element("button", { type: "button", title: one.id });
    button.dataset.id = one.id;
    const state = [one.place === "val" ? "validation" : "", one.masked ? "mask" : "no mask"].filter(Boolean).join(", ");
    const small = element("span");
    small.append(element("small", { textContent: state }));
    const image = element("img", { loading: "lazy", alt: "", src: server.thumbnail(one.id) });
    button.append(image, element("span", { textContent: one.id }), small);
    button.addEventListener("click", () => this.open(one.id, one.id));
    const item = element("li");
    item.append(button);
    return item;
  }

  // Which of them is open; null for none.
  mark(id) {
    this.current = id;
    for (const button of this.list.querySelectorAll("button")) {
      button.setAttribute("aria-current", String(id !== null && button.dataset.id === id));
    }
  }
}
