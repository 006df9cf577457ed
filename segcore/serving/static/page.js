// The page: opens photos, shows what the model says of them, paints, and saves.

import * as server from "./server.js";
import { Gallery } from "./gallery.js";
import { draw } from "./heat.js";
import { Legend, element } from "./legend.js";
import { Painter } from "./painter.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);

const about = await server.about();
const names = about.classes.map(({ name }) => name);
const painter = new Painter($("overlay"), changed);
const view = new View($("view"), $("sheet"), $("cursor"));
const legend = new Legend($("legend"), about.classes, {
  shown: (label, shown) => painter.show(label, shown),
  map: showMap,
  clear: (label) => {
    if (painter.locked) return;
    painter.begin();
    painter.replace(label, 0);
    painter.end();
  },
});
const parts = (...names) => Object.fromEntries(names.map((name) => [name, $(name)]));
const gallery = new Gallery(parts("list", "search", "filter", "count", "more"), open);
const tools = new Tools(parts("view", "overlay", "size", "sized", "cursor"), {
  sheet: view, painter, legend, unknown: about.unknown.label, taken: hideMap,
});
about.classes.forEach(({ colour }, label) => painter.colour(label, colour));
painter.colour(about.unknown.label, about.unknown.colour);

let photo = null; // the open one, as the server describes it
let said = null; // probabilities of its classes
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
    tools.suit(photo.width, photo.height);
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
  const place = about.data_set ? (places[photo.place] ?? "not in the data set") : "shown only: masks are saved with --data";
  $("facts").textContent = `${photo.width} x ${photo.height}, ${place}${tags}`;
  $("sources").hidden = !photo.masked;
  $("limit").hidden = !photo.tags?.length;
  $("save").hidden = !about.data_set;
  $("name").value = photo.id;
  $("name").readOnly = photo.place !== null;
  gallery.mark(photo.place === null ? null : photo.id);
  savable();
}

async function predicted(signal) {
  lock(true);
  busy("Predicting ...");
  const began = performance.now();
  const tags = $("limited").checked ? photo.tags : undefined;
  const found = await server.predict(photo.key, tags, signal);
  said = found.probabilities;
  start(found);
  tell(`Predicted in ${((performance.now() - began) / 1000).toFixed(1)} s`);
}

// Nothing is painted or saved before the labels are there: they would take its place.
function lock(locked) {
  painter.locked = locked;
  savable();
}

function start({ values, width, height }) {
  hideMap();
  lock(false);
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
    const found = await server.map(photo.key, names[label], signal);
    const most = draw($("heat"), found);
    $("heat").hidden = false;
    $("overlay").style.visibility = "hidden";
    legend.press(label);
    tell(`Probability of ${names[label]}: dark 0, bright 1; at most ${Math.round((most / 255) * 100)} %`);
  });
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

// ---- saving

function others() {
  const counts = painter.counts();
  return (photo.tags ?? []).filter((name) => !counts[names.indexOf(name)]);
}

function savable() {
  if (!photo || !about.data_set) return;
  const fixed = photo.place === "val" && !about.data_set.correct_val;
  $("keep").disabled = fixed || painter.locked;
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
  await working("Saving ...", async (signal) => {
    const tags = [...$("tags").querySelectorAll(":checked")].map(({ value }) => value);
    const changes = painter.dirty;
    painter.dirty = false; // what is painted from now on is not in what is saved
    const saved = await server.save(photo.key, painter.labels, $("name").value.trim(), tags).catch((error) => {
      painter.dirty ||= changes;
      throw error;
    });
    gallery.load().catch(fail);
    if (signal.aborted) return; // another photo was opened meanwhile
    photo = saved.photo;
    describe();
    document.querySelector("input[name=source][value=mask]").checked = true;
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
  });
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
for (const input of document.querySelectorAll("input[name=source]")) input.addEventListener("change", source);
$("limited").addEventListener("change", () => {
  if (leave()) working("Predicting ...", predicted);
  else $("limited").checked = !$("limited").checked;
});
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
addEventListener("keydown", (event) => photo && tools.press(event));

// ---- the beginning

document.title = `${about.model} - segcore`;
$("about").textContent = `${about.model} on ${about.device}${about.data_set ? `, data set ${about.data_set.root}` : ""}`;
$("browse").hidden = !about.data_set;
opaque();
if (about.data_set) await gallery.load().catch(fail);
