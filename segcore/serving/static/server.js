// What the page asks of the server; addresses are meant from the page's own, which holds the secret.

async function answer(request) {
  let response;
  try {
    response = await request;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; was `segcore serve` ended?");
  }
  if (response.ok) return response;
  let problem = `The server failed (${response.status}); its terminal says more.`;
  if (response.headers.get("Content-Type")?.startsWith("application/json")) problem = (await response.json()).problem;
  throw new Error(problem);
}

const json = async (request) => (await answer(request)).json();

async function pixels(request) {
  const response = await answer(request);
  const values = new Uint8Array(await response.arrayBuffer());
  const side = (name) => Number(response.headers.get(name));
  return { values, width: side("X-Width"), height: side("X-Height"), summary: response.headers.get("X-Summary") };
}

const query = (values, tags = []) => new URLSearchParams([...Object.entries(values), ...tags.map((name) => ["tag", name])]);
const photo = (key) => `api/photos/${encodeURIComponent(key)}`;

export const about = () => json(fetch("api/about"));
export const pictures = () => json(fetch("api/pictures"));
export const thumbnail = (id) => `api/pictures/${encodeURIComponent(id)}/thumbnail`;
export const picture = (key) => `${photo(key)}/picture`;
export const openKnown = (id, signal) => json(fetch(`api/photos?${query({ id })}`, { method: "POST", signal }));
export const openFile = (file, signal) =>
  json(fetch(`api/photos?${query({ name: file.name })}`, { method: "POST", body: file, signal }));
export const mask = (key, signal) => pixels(fetch(`${photo(key)}/mask`, { signal }));
export const map = (key, name, signal) => pixels(fetch(`${photo(key)}/map?${query({ class: name })}`, { signal }));

export async function predict(key, tags, signal) {
  const found = await pixels(fetch(`${photo(key)}/prediction?${query({}, tags)}`, { method: "POST", signal }));
  return { ...found, ...JSON.parse(found.summary) };
}

export const save = (key, labels, id, tags) =>
  json(fetch(`${photo(key)}/mask?${query({ id }, tags)}`, { method: "POST", body: labels }));
