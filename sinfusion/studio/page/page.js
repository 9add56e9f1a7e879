// The studio's page. One state, polled from the server; a stage for what is open, built once and then kept up to date.

const $ = (id) => document.getElementById(id);
const QUICK = 700, SLOW = 3000; // ms between two looks at the server: while something goes on, and else
const STILL = matchMedia("(prefers-reduced-motion: reduce)").matches;
let state = { clips: [], runs: [], results: [], jobs: [], training: {} };
let stage = { update() {}, leave() {} };

// Small tools ---------------------------------------------------------------------------------------------------------

function h(name, props, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(props || {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

async function send(path, options) {
  let response;
  try {
    response = await fetch("api/" + path, options);
  } catch {
    throw new Error("The server does not answer; begin it again with: sinfusion studio");
  }
  if (response.ok) return response;
  const text = await response.text();
  let words = text;
  try { words = JSON.parse(text).error; } catch { /* a plain sentence */ }
  throw new Error(sentence(words || `The server answered ${response.status}.`));
}
const post = (path, body) =>
  send(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
const asked = async (path, body) => (await post(path, body)).json();

const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1);
const say = (words) => { $("said").textContent = words; };
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
const sized = (one) => `${one.size[0]}×${one.size[1]}`;
const facts = (one) => one.kind === "image" ? `a picture, ${sized(one)}`
  : `${count(one.frames, "frame")}, ${sized(one)}, ${+one.fps.toFixed(2)} a second`;
const find = (kind, id) => state[kind].find((one) => one.id === id);
const VERBS = { patches: "New, from patches", loop: "Loop", retarget: "Other shape", inpaint: "Filled in", edit: "Edit", play: "Played", measure: "Figures", gif: "GIF" };

// Elements for items, kept as long as the item is there.
function sync(box, items, make, update) {
  const known = new Map([...box.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, at) => {
    let child = known.get(item.id);
    if (!child) { child = make(item); child.dataset.key = item.id; }
    known.delete(item.id);
    update?.(child, item);
    if (box.children[at] !== child) box.insertBefore(child, box.children[at] || null);
  });
  known.forEach((child) => child.remove());
}

// A button that does something on the server, and the sentence where that fails.
function action(words, work, kind = "button") {
  const error = h("p.error", { role: "alert", hidden: true });
  const button = h(kind, { type: "button", onclick: async () => {
    button.disabled = true;
    error.hidden = true;
    try { await work(); } catch (problem) { error.textContent = problem.message; error.hidden = false; }
    button.disabled = false;
    look();
  } }, words);
  return { button, error };
}

function field(words, input, output) {
  return h("label.field", {}, h("span", {}, words, output || ""), input);
}

function number(value, min, max, props) {
  return h("input.narrow", { type: "number", min, max, value, step: 1, ...props });
}

function slider(words, { min, max, step = 1, value, show = (v) => v, title = "" }) {
  const output = h("span.value", {}, show(value)); // an output would be what the label labels
  const input = h("input", { type: "range", min, max, step, value, oninput: () => tell() });
  const tell = () => { output.textContent = show(+input.value); input.setAttribute("aria-valuetext", output.textContent); };
  tell();
  return { element: h("label.field", { title }, h("span", {}, words, output), input), input, get value() { return +input.value; } };
}

function media(path, one, props) {
  if (one.kind === "image") return h("img", { src: path + ".png", alt: props?.label || "" });
  return h("video", { src: path + ".mp4", loop: true, muted: true, autoplay: !STILL, controls: true, playsInline: true,
    "aria-label": props?.label || "video" });
}

// Looking at the server -----------------------------------------------------------------------------------------------

// One after another, so that who waits for `look` sees what is there from now on.
let timer, looks = Promise.resolve();
const look = () => (looks = looks.then(lookOnce));
async function lookOnce() {
  try {
    const next = await (await send("state")).json();
    announce(state, next);
    state = next;
    $("trouble").hidden = true;
    shelves();
    stage.update();
  } catch (problem) {
    $("trouble").textContent = problem.message;
    $("trouble").hidden = false;
  }
  const busy = state.training.active || state.runs.some((run) => run.busy) || state.jobs.some(active);
  clearTimeout(timer);
  timer = setTimeout(look, busy ? QUICK : SLOW);
}
const active = (job) => job.state === "waiting" || job.state === "working";

function announce(before, after) {
  for (const job of after.jobs) {
    const old = before.jobs.find((one) => one.id === job.id);
    if (old && active(old) && !active(job) && !job.quiet)
      say(job.state === "done" ? `${VERBS[job.verb]} of ${job.label} is ready.` : `${VERBS[job.verb]}: ${job.error || job.state}`);
  }
  const learned = before.runs.find((run) => run.busy && !after.runs.find((one) => one.id === run.id)?.busy);
  if (learned) say(`The training on ${learned.label} has ended.`);
}

function runState(run) {
  if (run.busy) return `learning, ${Math.round(run.share * 100)}%`;
  return run.finished ? "trained" : `stopped at ${Math.round(run.share * 100)}%`;
}

function shelves() {
  const card = (kind, picture) => (one) => h("a.card", { href: `#${kind}/${one.id}` },
    h("img", { src: `api/${kind}/${one.id}/${picture}`, alt: "", loading: "lazy" }), h("span", {}, h("b"), h("small")));
  const tell = (first, second) => (element, one) => {
    element.querySelector("b").textContent = first(one);
    element.querySelector("small").textContent = second(one);
    if (element.hash === location.hash) element.setAttribute("aria-current", "true");
    else element.removeAttribute("aria-current");
  };
  sync($("clips"), state.clips, card("clips", "poster.png"), tell((one) => one.label, facts));
  sync($("runs"), state.runs, card("runs", "frame.png"), tell((one) => one.label, runState));
  sync($("results"), state.results, card("results", "poster.png"), tell((one) => VERBS[one.verb] || one.verb, (one) => one.label));
  const run = state.runs.find((one) => one.busy);
  const job = state.jobs.find((one) => one.state === "working");
  $("now").replaceChildren(...(run ? ["learning ", h("a", { href: `#runs/${run.id}` }, run.label), ` ${Math.round(run.share * 100)}%`]
    : state.training.starting ? ["the training begins"] : job ? [`${VERBS[job.verb]}: ${Math.round(job.share * 100)}%`] : ["nothing runs"]));
}

// Uploads -------------------------------------------------------------------------------------------------------------

function upload(file) {
  const bar = $("upload-bar"), words = $("upload-words"), error = $("upload-error");
  const request = new XMLHttpRequest(); // which tells how far it is
  error.hidden = true;
  $("upload").hidden = false;
  words.textContent = `${file.name}: on its way`;
  request.open("PUT", "api/clips?name=" + encodeURIComponent(file.name));
  request.upload.onprogress = (event) => { bar.value = event.loaded / event.total; };
  request.upload.onload = () => { bar.removeAttribute("value"); words.textContent = `${file.name}: being read`; };
  request.onloadend = async () => {
    $("upload").hidden = true;
    $("file").value = "";
    let found = {};
    try { found = JSON.parse(request.responseText); } catch { /* no answer */ }
    if (request.status !== 201) {
      error.textContent = sentence(found.error || "the upload has failed; is the server still there?");
      error.hidden = false;
      return;
    }
    say(`${file.name} is here.`);
    post("jobs", { verb: "patches", kind: "clips", id: found.id, options: {} }).catch(() => {});
    await look();
    location.hash = `#clips/${found.id}`;
  };
  request.send(file);
}

$("file").addEventListener("change", (event) => { if (event.target.files[0]) upload(event.target.files[0]); });
addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
});

// Parts of stages -----------------------------------------------------------------------------------------------------

// Tiles of what was made of a clip or a run, those that are being made first.
function resultsOf(kind, id, ...extra) {
  const grid = h("div.grid"), empty = h("p.empty", {}, "Nothing was made of it yet.");
  const waiting = h("div.grid");
  const failed = new Set();
  const update = () => {
    const mine = state.results.filter((one) => one.of === kind && one.source === id);
    const jobs = state.jobs.filter((job) => job.result && job.of === kind && job.source === id && (active(job) || (job.state === "failed" && !failed.has(job.id))));
    sync(waiting, jobs, (job) => {
      const stop = action("Cancel", () => post(`jobs/${job.id}/cancel`, {}), "button.quiet");
      const close = h("button.quiet", { onclick: () => { failed.add(job.id); update(); } }, "Close");
      return h("div.tile", {}, h("div", {}, h("b", {}, VERBS[job.verb]), h("progress", { max: 1, "aria-label": VERBS[job.verb] }), h("p.note"), stop.button, close));
    }, (tile, job) => {
      const [stop, close] = tile.querySelectorAll("button");
      tile.querySelector("progress").value = job.share;
      tile.querySelector("p").textContent = job.error ? sentence(job.error) : job.state === "waiting" ? "waits for its turn" : `${Math.round(job.share * 100)}%`;
      stop.hidden = !active(job);
      close.hidden = active(job);
    });
    sync(grid, mine, (one) => {
      const path = `api/results/${one.id}/result`;
      const shown = one.kind === "image" ? h("img", { src: path + ".png", alt: "" })
        : h("video", { src: path + ".mp4", loop: true, muted: true, autoplay: !STILL, playsInline: true, tabIndex: -1 });
      return h("a.tile", { href: `#results/${one.id}` }, shown, h("div", {}, h("b", {}, VERBS[one.verb]), h("small", {}, facts(one))));
    });
    empty.hidden = mine.length + jobs.length > 0;
  };
  return { element: h("section.panel", {}, h("div.row.middle", {}, h("h2", {}, "Made of it"), h("span.push", {}, extra.map((one) => one.button))), extra.map((one) => one.error), waiting, grid, empty), update };
}

// A canvas to paint on: what is painted may change. In colour for edits, else a plain mark.
function painter(picture, size, colour) {
  const [width, height] = size;
  const base = h("img", { src: picture, alt: "", hidden: true });
  const canvas = h("canvas.paint", { width, height, tabIndex: 0, role: "application",
    "aria-label": "Paint here; arrow keys move the brush, space paints, Delete clears" });
  const mask = h("canvas", { width, height }), colours = h("canvas", { width, height });
  mask.getContext("2d", { willReadFrequently: true });
  const brush = slider("Brush", { min: 1, max: Math.max(4, Math.round(height / 3)), value: Math.max(2, Math.round(height / 8)), show: (v) => `${v} px` });
  const ink = h("input", { type: "color", value: "#d8542a", "aria-label": "Colour" });
  let cursor = [width / 2, height / 2], last = null, keys = false;
  const draw = () => {
    const paper = canvas.getContext("2d");
    paper.globalAlpha = 1;
    if (base.complete && base.naturalWidth) paper.drawImage(base, 0, 0, width, height);
    paper.drawImage(colours, 0, 0);
    if (!colour) { paper.globalAlpha = 0.65; paper.drawImage(mask, 0, 0); paper.globalAlpha = 1; }
    if (keys) { paper.strokeStyle = "#fff"; paper.beginPath(); paper.arc(...cursor, brush.value / 2, 0, 7); paper.stroke(); }
  };
  const stroke = (from, to) => {
    for (const [target, style] of [[mask, "#ff5a3c"], ...(colour ? [[colours, ink.value]] : [])]) {
      const paper = target.getContext("2d");
      Object.assign(paper, { lineWidth: brush.value, lineCap: "round", strokeStyle: style });
      paper.beginPath(); paper.moveTo(...from); paper.lineTo(to[0] + 0.01, to[1]); paper.stroke();
    }
    draw();
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect(), scale = Math.min(box.width / width, box.height / height);
    return [(event.clientX - box.left - (box.width - width * scale) / 2) / scale, (event.clientY - box.top - (box.height - height * scale) / 2) / scale];
  };
  const clear = () => { for (const one of [mask, colours]) one.getContext("2d").clearRect(0, 0, width, height); draw(); };
  canvas.addEventListener("pointerdown", (event) => { keys = false; canvas.setPointerCapture(event.pointerId); last = place(event); stroke(last, last); });
  canvas.addEventListener("pointermove", (event) => { if (last) { const here = place(event); stroke(last, here); last = here; } });
  canvas.addEventListener("pointerup", () => { last = null; });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) cursor = cursor.map((at, axis) => Math.max(0, Math.min(size[axis], at + step[axis] * Math.max(1, brush.value / 3))));
    else if (event.key === " ") stroke(cursor, cursor);
    else if (event.key === "Delete") clear();
    else return;
    keys = true; event.preventDefault(); draw();
  });
  base.addEventListener("load", draw);
  // RGBA, whose alpha says what may change; everything does where `all`.
  const bytes = (all) => {
    const paper = h("canvas", { width, height }).getContext("2d");
    paper.drawImage(base, 0, 0, width, height);
    paper.drawImage(colours, 0, 0);
    const pixels = paper.getImageData(0, 0, width, height).data;
    const may = mask.getContext("2d").getImageData(0, 0, width, height).data;
    for (let at = 3; at < pixels.length; at += 4) pixels[at] = all || may[at] > 127 ? 255 : 0;
    return pixels;
  };
  return {
    element: h("div.screen", {}, base, canvas),
    tools: h("div.row", {}, brush.element, colour ? field("Colour", ink) : "", h("button", { type: "button", onclick: clear }, "Clear")),
    bytes,
  };
}

function paintings(verb, kind, one, picture, extra) {
  const easel = painter(picture, one.size, verb === "edit");
  const all = h("input", { type: "checkbox" });
  const strength = slider("Strength", { min: 0.05, max: 1, step: 0.05, value: 0.5, title: "A little keeps what was painted, 1 makes it anew" });
  const go = action(verb === "edit" ? "Make it real" : "Fill it in", async () => {
    const query = new URLSearchParams({ verb, kind, id: one.id, width: one.size[0], height: one.size[1], seed: seedOf(), ...extra?.() });
    if (verb === "edit") query.set("strength", strength.value.toFixed(2));
    await send("paintings?" + query, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: easel.bytes(all.checked) });
  }, "button.main");
  return h("section.panel", {}, h("h2", {}, verb === "edit" ? "Paint on it" : "Take something out"),
    h("p.note", {}, verb === "edit" ? "Paint blobs of colour: the model makes them look like the picture." : "Paint over it: it is filled from what is around, in every frame."),
    easel.element, easel.tools, verb === "edit" ? [strength.element, h("label.tick", {}, all, "All of the picture may change")] : "", h("div.row", {}, go.button), go.error);
}

const seedOf = () => Math.floor(Math.random() * 100000);

function removal(kind, one, words) {
  let sure = false;
  const remove = action(words, async () => {
    if (!sure) { sure = true; remove.button.textContent = "Remove for good?"; return; }
    await send(`${kind}/${one.id}`, { method: "DELETE" });
    location.hash = "#";
  }, "button.quiet");
  remove.button.addEventListener("blur", () => { sure = false; remove.button.textContent = words; });
  return remove;
}

// Stages --------------------------------------------------------------------------------------------------------------

function welcome() {
  return { element: h("div.welcome", {}, h("h1", {}, "One clip is enough."),
    h("p", {}, "Drop a short video or a picture. What is made here is learned from that alone, on this machine."),
    h("ol", {}, h("li", {}, h("span", {}, h("b", {}, "Drop it. "), "New ones from its patches are there in seconds.")),
      h("li", {}, h("span", {}, h("b", {}, "Train on it. "), "Watch it learn; stop and go on whenever you like.")),
      h("li", {}, h("span", {}, h("b", {}, "Play it. "), "Change speed, direction and surprise while it runs; go back, and branch.")))),
  update() {}, leave() {} };
}

function clipStage(clip) {
  const id = clip.id, moving = clip.kind === "video";
  const make = (verb, options) => post("jobs", { verb, kind: "clips", id, options });
  const detail = h("select", {}, h("option", { value: 128 }, "quick (128 pixels)"), h("option", { value: 256 }, "fine (256 pixels)"));
  const noise = slider("How different", { min: 0, max: 10, step: 0.5, value: 5 });
  const more = action("Make a new one", () => make("patches", { seed: seedOf(), noise: noise.value, max_side: +detail.value }), "button.main");
  const loop = action("Make a loop", () => make("loop", { seed: seedOf(), max_side: +detail.value }));
  const wide = slider("Width", { min: 50, max: 200, step: 5, value: 150, show: (v) => `${v}%` });
  const shape = action("Change the shape", () => {
    const scale = Math.min(1, +detail.value / Math.max(...clip.size));
    return make("retarget", { size: [Math.round(clip.size[0] * scale * wide.value / 100), Math.round(clip.size[1] * scale)], max_side: +detail.value, seed: seedOf() });
  });
  const minutes = number(2, 0.1, 600, { step: "any" });
  const train = action("Train", async () => {
    const { run } = await asked("train", { kind: "clips", id, options: { minutes: +minutes.value } });
    for (await look(); !find("runs", run); await look()) {
      if (!state.training.active) throw new Error(sentence(state.training.error || "it was stopped before it began."));
      await new Promise((resolve) => setTimeout(resolve, 400));
    }
    location.hash = `#runs/${run}`;
  }, "button.main");
  const made = resultsOf("clip", id), gone = removal("clips", clip, "Remove clip");
  const notes = clip.notes?.length ? h("p.note", {}, clip.notes.join("; ")) : "";
  return { update: made.update, leave() {}, element: [
    h("div.row.middle", {}, h("div", {}, h("h1", {}, clip.label), h("p.facts", {}, facts(clip))), h("span.push", {}, gone.button)), gone.error,
    h("div.wide", {}, h("div.stack", {}, h("div.screen", {}, media(`api/clips/${id}/view`, clip, { label: clip.label })), made.element),
      h("div.stack", {},
        h("section.panel", {}, h("h2", {}, "Without training"), h("p.note", {}, "New ones from its patches, in seconds."),
          noise.element, field("Detail", detail), h("div.row", {}, more.button, moving ? loop.button : ""), more.error, loop.error, notes),
        h("section.panel", {}, h("h2", {}, "Learn it"), h("p.note", {}, "A small model learns how it looks and moves, to be played. Stop at any time, go on later."),
          h("div.row", {}, field("Minutes", minutes), train.button), train.error))),
    h("div.tools", {},
      h("section.panel", {}, h("h2", {}, "Another shape"), h("p.note", {}, "Wider or narrower, with things at their own size."), wide.element, h("div.row", {}, shape.button), shape.error),
      paintings("inpaint", "clips", clip, `api/clips/${id}/poster.png`, () => ({ max_side: Math.max(32, ...clip.size) })))] };
}

const NAMES = { predictor: "Predictor: the next frame", projector: "Projector: single frames", interpolator: "Interpolator: between frames", image: "Image" };

function chart() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), line = document.createElementNS(svg.namespaceURI, "polyline");
  svg.setAttribute("class", "chart"); svg.setAttribute("viewBox", "0 0 100 40"); svg.setAttribute("preserveAspectRatio", "none"); svg.setAttribute("role", "img");
  svg.append(line);
  return { svg, draw(loss) {
    svg.toggleAttribute("hidden", !loss.length);
    const low = Math.min(...loss.map((p) => p[1])), high = Math.max(...loss.map((p) => p[1])), end = loss.at(-1)?.[0] || 1;
    const y = (v) => 36 - 32 * (Math.log(v) - Math.log(low)) / Math.max(Math.log(high) - Math.log(low), 1e-9);
    line.setAttribute("points", loss.map(([step, v]) => `${(100 * step / end).toFixed(2)},${y(v).toFixed(2)}`).join(" "));
    svg.setAttribute("aria-label", loss.length ? `Loss from ${loss[0][1].toFixed(3)} to ${loss.at(-1)[1].toFixed(3)}` : "No loss yet");
  } };
}

function runStage(first) {
  const id = first.id;
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Training" }), words = h("p.state"), models = h("div.tools");
  const stop = action("Stop, and save", () => post("stop", { id }));
  const minutes = number(2, 0.1, 600, { step: "any" });
  const onward = action("Go on", () => post("train", { kind: "runs", id, options: { minutes: +minutes.value } }));
  const further = field("More minutes", minutes), failed = h("p.error", { role: "alert", hidden: true }), hint = h("p.note");
  const loop = action("Make a loop", () => post("jobs", { verb: "loop", kind: "runs", id, options: { seed: seedOf() } }));
  const made = resultsOf("run", id, loop), play = player(first);
  const edit = first.kind === "image" ? paintings("edit", "runs", first, `api/runs/${id}/frame.png`) : "";
  const update = () => {
    const run = find("runs", id);
    if (!run) return;
    bar.value = run.share;
    words.textContent = sentence(runState(run));
    words.classList.toggle("live", run.busy);
    stop.button.hidden = !run.busy;
    onward.button.hidden = run.busy;
    onward.button.textContent = run.finished ? "Train further" : "Go on";
    further.hidden = run.busy || !run.finished;
    failed.hidden = run.busy || state.training.run !== id || !state.training.error;
    hint.textContent = state.training.run === id && state.training.note ? sentence(state.training.note) + ": train further." : "";
    failed.textContent = sentence(state.training.error || "");
    sync(models, run.models.map((model) => ({ ...model, id: model.name })), (model) => {
      const lines = chart();
      const box = h("div", {}, h("h3", {}, NAMES[model.name] || model.name), h("small"), lines.svg, h("img.preview", { alt: `What the ${model.name} makes so far`, hidden: true }));
      box.draw = lines.draw;
      return box;
    }, (box, model) => {
      const loss = model.loss.length ? `, loss ${model.loss.at(-1)[1].toFixed(3)}` : "";
      box.querySelector("small").textContent = model.total ? `${model.done} of ${model.total} steps${loss}` : "its turn comes";
      box.draw(model.loss);
      const preview = box.querySelector("img"), path = `api/runs/${id}/${model.name}?${model.preview}`;
      if (model.preview && !preview.src.endsWith(path)) { preview.src = path; preview.hidden = false; }
    });
    play.update(run);
    if (run.playable && !play.element.previousElementSibling?.matches(".head")) learning.before(play.element);
    loop.button.hidden = !run.playable || run.kind !== "video";
    made.update();
  };
  const learning = h("section.panel", {}, h("div.row.middle", {}, h("h2", {}, "Learning"), words, h("span.push.row", {}, further, onward.button, stop.button)),
    bar, hint, failed, stop.error, onward.error, models);
  return { update, leave: play.leave, element: [
    h("div.head.row.middle", {}, h("div", {}, h("h1", {}, first.label), h("p.facts", {}, `${first.name}: ${facts(first)}`))),
    learning, play.element, // which comes first once there is something to play
    edit,
    made.element] };
}

// Live: each frame is asked for with the settings of that moment, so what a slider says holds from the next one on.
function player(run) {
  const moving = run.kind === "video";
  let session = null, playing = false, at = -1, alive = true;
  let branches = [{ frames: [], name: "Branch 1" }], branch = branches[0];
  const rest = h("img.rest", { src: `api/runs/${run.id}/frame.png`, alt: "" });
  const shown = h("img", { alt: "The frame that is shown", hidden: true }), hint = h("p.hint"), badge = h("span.badge", { hidden: true });
  const error = h("p.error", { role: "alert", hidden: true });
  const speed = slider("Speed and direction", { min: 0, max: Math.max(0, run.offsets.length - 1), value: run.offsets.indexOf(1), show: (v) => speedWords(run.offsets[v] ?? 1) });
  const size = slider("Size", { min: 50, max: 200, step: 10, value: 100, show: (v) => `${Math.round(run.size[0] * v / 100)}×${Math.round(run.size[1] * v / 100)}` });
  const surprise = slider("Surprise", { min: 0, max: 1.5, step: 0.05, value: 1, title: "How much of the sampler's noise is added: 0 is what is likely alone, above 1 the unlikely, too" });
  const projection = slider("Projection", { min: 0, max: 1, step: 0.05, value: run.projection, title: "How far frames are drawn to the clip's patches, so that things stay whole" });
  const steps = slider("Steps", { min: 1, max: Math.max(50, run.steps), value: run.steps, title: "Network evaluations a frame: fewer are faster" });
  const seed = number(0, 0, 4294967295);
  const dice = h("button", { type: "button", "aria-label": "Another seed", onclick: () => { seed.value = seedOf(); } }, "Another");
  const start = h("select", {}, h("option", { value: "0" }, "the clip's first frame"), h("option", { value: String(run.frames - 1) }, "the clip's last frame"),
    h("option", { value: String(Math.floor(run.frames / 2)) }, "the clip's middle"), h("option", { value: "" }, "a frame of its own"));
  const scrub = h("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Frame", oninput: () => { pause(); show(+scrub.value); } });
  const toggle = h("button.main", { type: "button", onclick: () => (playing ? pause() : begin()) }, "Play");
  const step = h("button", { type: "button", "aria-label": "One frame on", onclick: () => { pause(); once(); } }, "+1");
  const where = h("small", {}, "0");
  const fork = h("button", { type: "button", disabled: true, onclick: () => { newBranch(); begin(); } }, "Branch here");
  const restart = h("button.quiet", { type: "button", onclick: () => { forget(); begin(); } }, "Start over");
  const chips = h("div.row.middle", { role: "group", "aria-label": "Branches" });
  const keep = action(moving ? "Keep up to here" : "Keep this picture", async () => {
    const { result } = await asked("keep", { session, frame: branch.frames[at].number });
    say("Kept as a result.");
    await look();
    location.hash = `#results/${result}`;
  });

  const settings = () => ({
    ...(moving ? { frame_offset: run.offsets[speed.value], projection: projection.value } : {}),
    size: size.value === 100 ? null : run.size.map((side) => Math.max(8, Math.round(side * size.value / 100))),
    seed: Math.max(0, Math.round(+seed.value) || 0), surprise: surprise.value, steps: steps.value,
  });
  const show = (index) => {
    at = index;
    if (branch.frames[at]) { shown.src = branch.frames[at].url; shown.hidden = false; badge.hidden = false; }
    hint.hidden = rest.hidden = branch.frames.length > 0;
    scrub.max = Math.max(0, branch.frames.length - 1);
    scrub.value = at;
    where.textContent = `${at + 1} / ${branch.frames.length}`;
    badge.textContent = `${moving ? "frame" : "picture"} ${at + 1}`;
    keep.button.disabled = at < 0;
    fork.disabled = !moving || at < 0 || at >= branch.frames.length - 1;
  };
  const open = async () => {
    const options = moving && start.value !== "" ? { start: +start.value } : {};
    session = (await asked("play", { id: run.id, options })).session;
  };
  // The next frame: one that is there already, or a new one.
  const once = async () => {
    error.hidden = true;
    try {
      if (!session) await open();
      if (at < branch.frames.length - 1) return show(at + 1);
      const mine = branch, after = mine.frames.at(-1)?.number ?? null;
      const response = await post("next", { session, after, settings: settings() });
      const url = URL.createObjectURL(await response.blob());
      mine.frames.push({ number: +response.headers.get("x-frame"), url });
      if (mine === branch && alive) show(branch.frames.length - 1);
    } catch (problem) {
      pause();
      error.textContent = problem.message;
      error.hidden = false;
      session = /another page|has ended/.test(problem.message) ? null : session;
      if (!session) forget();
    }
  };
  const begin = async () => {
    if (playing) return;
    playing = true;
    toggle.textContent = "Pause";
    while (playing && alive) {
      const began = performance.now();
      await once();
      const rest = (moving ? 1000 / run.fps : 600) - (performance.now() - began);
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, rest)));
    }
  };
  const pause = () => { playing = false; toggle.textContent = "Play"; };
  const newBranch = () => {
    pause();
    seed.value = seedOf();
    branch = { frames: branch.frames.slice(0, at + 1), name: `Branch ${branches.length + 1}` };
    branches.push(branch);
    show(at);
    chip();
  };
  const chip = () => {
    chips.replaceChildren(...(branches.length < 2 ? [] : branches.map((one) => h(`button${one === branch ? ".on" : ""}`, {
      type: "button", "aria-pressed": String(one === branch), onclick: () => { pause(); branch = one; show(branch.frames.length - 1); chip(); },
    }, one.name))));
  };
  const forget = () => {
    pause();
    new Set(branches.flatMap((one) => one.frames.map((frame) => frame.url))).forEach((url) => URL.revokeObjectURL(url));
    session = null;
    branches = [{ frames: [], name: "Branch 1" }];
    branch = branches[0];
    shown.hidden = badge.hidden = true;
    show(-1);
    chip();
  };
  start.addEventListener("change", forget);
  const screen = h("div.screen", { tabIndex: 0, role: "group", "aria-label": "Player: space plays and pauses, arrows go back and on, B branches" }, rest, shown, hint, badge);
  screen.addEventListener("keydown", (event) => {
    if (event.key === " ") playing ? pause() : begin();
    else if (event.key === "ArrowLeft" && at > 0) { pause(); show(at - 1); }
    else if (event.key === "ArrowRight") { pause(); once(); }
    else if (event.key.toLowerCase() === "b" && !fork.disabled) { newBranch(); begin(); }
    else return;
    event.preventDefault();
  });
  const controls = [moving ? speed.element : "", size.element, surprise.element, moving ? projection.element : "", steps.element,
    h("div.row", {}, field("Seed", seed), dice), moving ? field("Begin with", start) : ""];
  const element = h("section.panel", {}, h("h2", {}, "Play"),
    h("div.wide", {}, h("div.panel-left", {}, screen, h("div.transport", {}, toggle, step, scrub, where), h("div.row.middle", {}, moving ? fork : "", keep.button, restart), chips, error, keep.error),
      h("div.sliders", {}, ...controls)));
  show(-1);
  return { element, leave() { alive = false; forget(); }, update(now) {
    hint.textContent = now.playable ? (moving ? "Press play: each frame is made as you watch." : "Press play: new pictures, one after another.")
      : "Its model has not saved anything yet; that takes a moment of training.";
    for (const button of [toggle, step]) button.disabled = !now.playable;
  } };
}
const speedWords = (offset) => `${Math.abs(offset) === 1 ? "as it was" : `${Math.abs(offset)}× as fast`}${offset < 0 ? ", backward" : ""}`;

// Figures of results
const FIGURES = [["nnfdiv", "Diversity", "NNFDIV: more is further from a copy"], ["nnfdist", "Distance", "NNFDIST: error of its patches; less is better"],
  ["coverage", "Coverage", "How much of the original is there, and as often; 1 for a copy"], ["change", "Motion", "Change between frames; 1 in the original"],
  ["high_frequency", "Detail", "High frequencies; 1 in the original"]];

function resultStage(first, otherId) {
  const id = first.id, other = otherId && find("results", otherId), both = other ? [first, other] : [first];
  const source = find(first.of + "s", first.source);
  const choose = h("select", { "aria-label": "Compare with" });
  const measure = action("Measure", async () => {
    for (const one of both) if (!find("results", one.id).figures) await asked("jobs", { verb: "measure", id: one.id });
  });
  const figures = h("div"), working = h("p.note");
  const name = (one) => `${VERBS[one.verb]} (${one.name.replace("result-", "no. ")})`;
  const table = () => {
    const now = both.map((one) => find("results", one.id)).filter(Boolean);
    const missing = now.filter((one) => !one.figures);
    const job = state.jobs.find((one) => one.verb === "measure" && active(one));
    const bad = state.jobs.find((one) => one.verb === "measure" && !active(one));
    measure.button.hidden = !missing.length || Boolean(job);
    working.textContent = job ? `being measured, ${Math.round(job.share * 100)}%` : missing.length && bad?.state === "failed" ? sentence(bad.error) : "";
    const measured = now.filter((one) => one.figures);
    const key = JSON.stringify(measured.map((one) => [one.id, one.figures]));
    if (!measured.length || figures.dataset.key === key) return;
    figures.dataset.key = key;
    const value = (of, row) => of?.[row] == null ? "–" : (+of[row]).toFixed(2);
    const columns = [...measured.map((one) => [name(one), one.figures]), ["the original's halves", measured[0].self_baseline]];
    figures.replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Figure"), columns.map(([words]) => h("th", { scope: "col" }, words)))),
      h("tbody", {}, FIGURES.map(([key, words, title]) => h("tr", { title }, h("th", { scope: "row" }, words), columns.map(([, of]) => h("td", {}, value(of, key))))))));
  };
  const update = () => {
    const others = state.results.filter((one) => one.id !== id && one.kind === first.kind);
    const key = others.map((one) => one.id).join();
    if (choose.dataset.key !== key) {
      choose.dataset.key = key;
      choose.replaceChildren(h("option", { value: "" }, others.length ? "Compare with …" : "Nothing to compare with yet"),
        ...others.map((one) => h("option", { value: one.id, selected: one.id === otherId }, `${name(one)}: ${one.label}`)));
      choose.disabled = !others.length;
    }
    table();
  };
  choose.addEventListener("change", () => { location.hash = `#results/${id}` + (choose.value ? `/${choose.value}` : ""); });
  const shown = both.map((one) => media(`api/results/${one.id}/result`, one, { label: name(one) }));
  const together = h("button", { type: "button", onclick: () => shown.forEach((video) => { video.currentTime = 0; video.play(); }) }, "From the beginning, together");
  const gone = removal("results", first, "Remove result");
  const download = (ending, words) => h("a.button", { href: `api/results/${id}/download.${ending}`, download: `${first.name}.${ending}` }, words);
  const downloads = first.kind === "video" ? [download("mp4", "MP4"), download("gif", "GIF"), download("zip", "PNGs")] : [download("png", "PNG")];
  return { update, leave() {}, element: [
    h("div.row.middle", {}, h("div", {}, h("h1", {}, VERBS[first.verb]), h("p.facts", {}, source ? h("a", { href: `#${first.of}s/${first.source}` }, first.label) : first.label, `: ${facts(first)}`,
      first.seed == null ? "" : `, seed ${first.seed}`, first.seconds ? `, made in ${first.seconds} s` : "")), h("span.push", {}, gone.button)), gone.error,
    first.note ? h("p.note", {}, sentence(first.note) + ".") : "",
    h(both.length > 1 ? "div.pair.keep" : "div", {}, shown.map((one, at) => h("figure.screen", { "aria-label": name(both[at]) }, one, both.length > 1 ? h("span.badge", {}, name(both[at])) : ""))),
    h("div.row", {}, ...downloads, both.length > 1 && first.kind === "video" ? together : "", h("span.push", {}, choose)),
    h("section.panel", {}, h("div.row.middle", {}, h("h2", {}, "Figures"), h("span.push", {}, measure.button)), h("p.note", {}, "Against what it was made of."), measure.error, working, figures)] };
}

// Which stage ---------------------------------------------------------------------------------------------------------

function route() {
  const [kind, id, other] = location.hash.slice(1).split("/");
  const one = state[kind] && find(kind, id);
  stage.leave();
  stage = !one ? welcome() : kind === "clips" ? clipStage(one) : kind === "runs" ? runStage(one) : resultStage(one, other);
  $("stage").replaceChildren(...[stage.element].flat().filter(Boolean));
  document.title = one ? `${one.label}: sinfusion studio` : "sinfusion studio";
  shelves();
  stage.update();
  scrollTo(0, 0);
}

function dress(light) {
  document.documentElement.classList.toggle("light", light);
}
let light = localStorage.getItem("look") ? localStorage.getItem("look") === "light" : matchMedia("(prefers-color-scheme: light)").matches;
dress(light);
$("look").addEventListener("click", () => { light = !light; dress(light); localStorage.setItem("look", light ? "light" : "dark"); });
$("skip").addEventListener("click", () => $("stage").focus());
addEventListener("hashchange", () => { route(); $("stage").focus({ preventScroll: true }); });
look().then(route);
