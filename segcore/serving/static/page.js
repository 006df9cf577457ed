// The page: opens photos, shows what the model says of them, paints, and saves.

import * as server from "./server.js";
import { Legend, element } from "./legend.js";
import { Painter } from "./painter.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const AT_ONCE = 60; // thumbnails
const RAMP = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

const about = await server.about();
const names = about.classes.map(({ name }) => name);
const painter = new Painter($("overlay"), changed);
const view = new View($("view"), $("sheet"), $("cursor"));
const legend = new Legend($("legend"), about.classes, {
  shown: (label, shown) => painter.show(label, shown),
  map: showMap,
});
about.classes.forEach(({ colour }, label) => painter.colour(label, colour));
painter.colour(about.unknown.label, about.unknown.colour);

let photo = null; // the open one, as the server describes it
let said = null; // probabilities of its classes
let pictures = [];
let shown = AT_ONCE;
let work = new AbortController();

// ---- saying

function busy(text) {
  $("status").textContent = text;
  $("status").classList.add("busy");
}

function tell(text) {
  $("status").textContent = text;
  $("status").classList.remove("busy");
}

function fail(error) {
  if (error.name === "AbortError") return;
  tell("");
  $("problem").textContent = error.message;
  $("problem").hidden = false;
}

// One piece of work at a time: a new one ends what was asked for before.
async function working(text, task) {
  work.abort();
  const mine = (work = new AbortController());
  $("problem").hidden = true;
  busy(text);
  try {
    await task(mine.signal);
  } catch (error) {
    if (mine === work) fail(error);
  }
}

const leave = () => !painter.dirty || confirm("Your changes to this photo are not saved. Leave them?");

// ---- opening

async function open(ask, name) {
  if (!leave()) return;
  await working(`Opening ${name} ...`, async (signal) => {
    if (ask.size > about.most.bytes) throw new Error(`${name} has more than ${about.most.bytes / 2 ** 20} MiB; make it smaller.`);
    const opened = await (ask instanceof File ? server.openFile(ask, signal) : server.openKnown(ask, signal));
    const address = server.picture(opened.key);
    const image = new Image();
    image.src = address;
    await image.decode().catch(() => { throw new Error(`${name} cannot be shown; is it too large for this browser?`); });
    signal.throwIfAborted();
    photo = opened;
    said = null;
    $("photo").src = address;
    $("photo").alt = photo.name;
    painter.load(new Uint8Array(photo.width * photo.height), photo.width, photo.height);
    for (const part of ["tools", "view", "side"]) $(part).hidden = false;
    $("empty").hidden = true;
    view.open(photo.width, photo.height);
    const short = Math.min(photo.width, photo.height);
    $("size").max = Math.max(2, Math.round(short / 3));
    resize(Math.max(1, Math.round(short / 20)));
    describe();
    $("limited").checked = false;
    $("sources").querySelector("[value=prediction]").checked = true;
    await predicted(signal);
  });
}

function describe() {
  const places = { train: "in the training list", val: "a validation image", unlisted: "in the data set, in no list" };
  $("title").textContent = photo.name;
  const tags = photo.tags ? `; tags: ${photo.tags.join(", ") || "none"}` : "";
  $("facts").textContent = `${photo.width} x ${photo.height}, ${places[photo.place] ?? "not in the data set"}${tags}`;
  $("sources").hidden = !photo.masked;
  $("limit").hidden = !photo.tags?.length;
  $("save").hidden = !about.data_set;
  $("name").value = photo.id;
  $("name").readOnly = photo.place !== null;
  for (const button of $("list").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(photo.place !== null && button.dataset.id === photo.id));
  }
  savable();
}

async function predicted(signal) {
  busy("Predicting ...");
  const began = performance.now();
  const tags = $("limited").checked ? photo.tags : undefined;
  const found = await server.predict(photo.key, tags, signal);
  said = found.probabilities;
  start(found);
  tell(`Predicted in ${((performance.now() - began) / 1000).toFixed(1)} s`);
}

function start({ values, width, height }) {
  hideMap();
  painter.load(values, width, height);
  changed(true);
}

async function source() {
  if (!leave()) {
    const former = document.querySelector("input[name=source]:not(:checked)");
    former.checked = true;
    return;
  }
  await working("Reading ...", async (signal) => {
    if (document.querySelector("input[name=source]:checked").value === "prediction") return predicted(signal);
    start(await server.mask(photo.key, signal));
    tell("The mask of the data set");
  });
}

// ---- maps

async function showMap(label) {
  hideMap();
  if (label === null || !photo) return;
  await working(`Where is ${names[label]} likely? ...`, async (signal) => {
    const { values, width, height } = await server.map(photo.key, names[label], signal);
    const canvas = $("heat");
    [canvas.width, canvas.height] = [width, height];
    const image = new ImageData(width, height);
    values.forEach((value, place) => {
      const at = (value / 255) * (RAMP.length - 1);
      const below = Math.min(RAMP.length - 2, Math.floor(at));
      for (let part = 0; part < 3; part++) {
        image.data[4 * place + part] = RAMP[below][part] + (at - below) * (RAMP[below + 1][part] - RAMP[below][part]);
      }
      image.data[4 * place + 3] = 255;
    });
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.hidden = false;
    $("overlay").style.visibility = "hidden";
    legend.press(label);
    tell(`Probability of ${names[label]}: dark 0, bright 1; at most ${Math.round((Math.max(...rows(values)) / 255) * 100)} %`);
  });
}

// The greatest of every so many values: a spread of millions is too much for a call.
function* rows(values) {
  for (let first = 0; first < values.length; first += 4096) {
    yield values.subarray(first, first + 4096).reduce((most, value) => Math.max(most, value), 0);
  }
}

function hideMap() {
  $("heat").hidden = true;
  $("overlay").style.visibility = "";
  legend.press(null);
}

// ---- painting

function changed(fresh = false) {
  $("undo").disabled = !painter.past.length;
  $("redo").disabled = !painter.future.length;
  legend.tell(said, painter.counts(), fresh === true);
  savable();
}

const tool = () => document.querySelector("input[name=tool]:checked").value;

function chooseTool(name) {
  const input = document.querySelector(`input[name=tool][value=${name}]`);
  input.checked = true;
  $("view").dataset.tool = name;
  $("cursor").hidden = name === "move";
  view.brush(name === "brush" ? Number($("size").value) : 1);
  if (name !== "move") hideMap();
}

function resize(value) {
  $("size").value = value;
  $("sized").textContent = $("size").value;
  if (tool() === "brush") view.brush(Number($("size").value));
}

function apply(from, to) {
  if (tool() === "fill") painter.fill(to.x, to.y, legend.paint);
  else painter.stroke(from, to, Number($("size").value), legend.paint);
}

let last = null;
$("overlay").addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || tool() === "move" || !event.isPrimary) return;
  event.preventDefault();
  $("view").focus({ preventScroll: true });
  $("overlay").setPointerCapture(event.pointerId);
  last = view.point(event);
  view.moveTo(last);
  painter.begin();
  apply(last, last);
  if (tool() === "fill") finish();
});
$("overlay").addEventListener("pointermove", (event) => {
  if (!event.isPrimary) return;
  for (const one of event.getCoalescedEvents?.() ?? [event]) {
    const to = view.point(one);
    if (last) apply(last, to);
    if (last) last = to;
  }
  view.moveTo(view.point(event));
});
for (const kind of ["pointerup", "pointercancel"]) $("overlay").addEventListener(kind, finish);

function finish() {
  last = null;
  painter.end();
}

// ---- saving

function others() {
  const counts = painter.counts();
  return (photo.tags ?? []).filter((name) => !counts[names.indexOf(name)]);
}

function savable() {
  if (!photo || !about.data_set) return;
  const fixed = photo.place === "val" && !about.data_set.correct_val;
  $("keep").disabled = fixed;
  $("note").textContent = fixed
    ? "A validation image: results are measured by its mask, which stays as it is (--correct-validation changes that)."
    : "";
  const left = others();
  $("others").hidden = fixed || !left.length;
  const kept = new Set(left.filter((name) => $("tags").querySelector(`[value="${CSS.escape(name)}"]`)?.checked === false));
  $("tags").replaceChildren(...left.map((name) => {
    const line = element("label", { className: "check" });
    line.append(element("input", { type: "checkbox", value: name, checked: !kept.has(name) }), ` keep ${name}`);
    const item = element("li");
    item.append(line);
    return item;
  }));
}

async function save(event) {
  event.preventDefault();
  await working("Saving ...", async () => {
    const tags = [...$("tags").querySelectorAll(":checked")].map(({ value }) => value);
    const saved = await server.save(photo.key, painter.labels, $("name").value.trim(), tags);
    photo = saved.photo;
    painter.dirty = false;
    describe();
    tell("Saved");
    const { strong } = about.data_set;
    $("note").textContent = [
      `Saved: ${saved.mask}.`,
      saved.replaced ? `The former mask: ${saved.replaced}.` : "",
      saved.listed ? `Added to ${saved.listed}.txt.` : "",
      strong && strong !== "all"
        ? `split.strong.kind is '${strong}', which chooses among the masks; 'all' learns from every one.`
        : "The next `dvc repro` learns from it.",
    ].filter(Boolean).join(" ");
    await browse();
  });
}

// ---- the data set

async function browse() {
  if (!about.data_set) return;
  pictures = await server.pictures();
  list();
}

function list() {
  const part = $("search").value.trim().toLowerCase();
  const tests = { all: () => true, unmasked: (one) => !one.masked, masked: (one) => one.masked, val: (one) => one.place === "val" };
  const some = pictures.filter((one) => tests[$("filter").value](one) && one.id.toLowerCase().includes(part));
  $("count").textContent = `${some.length} of ${pictures.length} photos`;
  $("more").hidden = some.length <= shown;
  $("list").replaceChildren(...some.slice(0, shown).map((one) => {
    const button = element("button", { type: "button", title: one.id });
    button.dataset.id = one.id;
    button.setAttribute("aria-current", String(photo?.id === one.id && photo.place !== null));
    const state = [one.place === "val" ? "validation" : "", one.masked ? "mask" : "no mask"].filter(Boolean).join(", ");
    const name = element("span", { textContent: one.id });
    const small = element("span");
    small.append(element("small", { textContent: state }));
    button.append(element("img", { src: server.thumbnail(one.id), alt: "", loading: "lazy" }), name, small);
    button.addEventListener("click", () => open(one.id, one.id));
    const item = element("li");
    item.append(button);
    return item;
  }));
}

// ---- what a person does

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) open(file, file.name);
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => !event.relatedTarget && document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) open(file, file.name);
});
addEventListener("beforeunload", (event) => painter.dirty && event.preventDefault());
for (const input of document.querySelectorAll("input[name=tool]")) input.addEventListener("change", () => chooseTool(input.value));
for (const input of document.querySelectorAll("input[name=source]")) input.addEventListener("change", source);
$("limited").addEventListener("change", () => {
  if (leave()) working("Predicting ...", predicted);
  else $("limited").checked = !$("limited").checked;
});
$("size").addEventListener("input", () => resize($("size").value));
$("opacity").addEventListener("input", opaque);
function opaque() {
  $("opaque").textContent = `${$("opacity").value} %`;
  for (const layer of ["overlay", "heat"]) $(layer).style.opacity = $("opacity").value / 100;
}
$("undo").addEventListener("click", () => painter.undo());
$("redo").addEventListener("click", () => painter.redo());
$("fit").addEventListener("click", () => view.fit());
$("in").addEventListener("click", () => view.zoom(1.5));
$("out").addEventListener("click", () => view.zoom(1 / 1.5));
$("save").addEventListener("submit", save);
$("search").addEventListener("input", list);
$("filter").addEventListener("change", list);
$("more").addEventListener("click", () => {
  shown += AT_ONCE;
  list();
});

const KEYS = {
  v: () => chooseTool("move"), b: () => chooseTool("brush"), f: () => chooseTool("fill"), h: () => view.fit(),
  "[": () => resize(Math.round($("size").value * 0.8) - 1), "]": () => resize(Math.round($("size").value * 1.25) + 1),
  "+": () => view.zoom(1.5), "-": () => view.zoom(1 / 1.5), u: () => legend.choose(about.unknown.label),
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input:not([type=radio], [type=checkbox], [type=range]), select, textarea");
  if (!photo || typing || event.altKey) return;
  if (event.ctrlKey || event.metaKey) {
    const key = event.key.toLowerCase();
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    if (key === "y" || event.shiftKey) painter.redo();
    else painter.undo();
  } else if (event.target === $("view") && tool() !== "move" && (event.key in ARROWS || event.key === " ")) {
    event.preventDefault();
    const [x, y] = ARROWS[event.key] ?? [0, 0];
    const step = event.shiftKey ? 1 : Math.max(1, Number($("size").value) / 2);
    view.moveTo({ x: view.at.x + x * step, y: view.at.y + y * step });
    if (event.key === " ") {
      painter.begin();
      apply(view.at, view.at);
      painter.end();
    }
  } else if (/^[0-9]$/.test(event.key)) {
    legend.choose(Number(event.key));
  } else if (KEYS[event.key.toLowerCase()]) {
    KEYS[event.key.toLowerCase()]();
  }
});

// ---- the beginning

document.title = `${about.model} - segcore`;
$("about").textContent = `${about.model} on ${about.device}${about.data_set ? `, data set ${about.data_set.root}` : ""}`;
$("browse").hidden = !about.data_set;
chooseTool("move");
opaque();
await browse().catch(fail);
