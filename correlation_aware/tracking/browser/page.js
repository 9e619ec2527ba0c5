// The page: chooses a source of frames, lets the user draw a box, tracks, and shows and saves the results.
import {hasCamera, openCamera, openFile} from "./frames.js";
import {Tracker, visiblePart} from "./tracker.js";

const $ = id => document.getElementById(id), FIELDS = ["x", "y", "w", "h"];
let tracker = null, source = null, box = null, latest = null, rows = [], state = "empty", milliseconds = 0;
let run = 0;  // number of the source that was opened last
let loop = null;  // the promise of the loop that tracks, while it runs

function say(text, isError = false) {
  $("message").textContent = text;
  $("message").className = isError ? "error" : "";
}

// States: empty (no video), ready (a box can be drawn), playing, paused, finished.
function show(next) {
  state = next;
  $("work").hidden = state === "empty";
  $("stage").className = state === "ready" ? "draw" : "";
  $("box").disabled = state !== "ready";
  $("box").hidden = state !== "ready";
  $("track").disabled = !tracker || !box;
  $("track").hidden = state === "finished";
  $("track").textContent = {playing: "Pause", paused: "Continue"}[state] ?? "Track";
  $("again").hidden = state === "ready" && !box;
  $("again").textContent = state === "ready" ? "Clear box" : "Start again";
  $("csv").hidden = !rows.length || state === "playing";
}

function paint(result = null) {
  const {canvas} = source, shown = $("canvas");
  if (shown.width !== canvas.width || shown.height !== canvas.height) {
    Object.assign(shown, {width: canvas.width, height: canvas.height});
    $("svg").setAttribute("viewBox", `0 0 ${canvas.width} ${canvas.height}`);
  }
  shown.getContext("2d").drawImage(canvas, 0, 0);
  const drawn = result ? result.box : box;
  ["x", "y", "width", "height"].forEach((name, i) => $("rect").setAttribute(name, drawn ? drawn[i] : 0));
  $("rect").setAttribute("class", result?.lost ? "lost" : "");
  $("lost").hidden = !result?.lost;
  $("frame").textContent = `Frame ${source.index + 1}${source.count ? ` of ${source.count}` : ""}`;
  $("score").textContent = result ? `score ${result.score.toFixed(2)}` : "";
  $("speed").textContent = milliseconds ? `${(1000 / milliseconds).toFixed(1)} frames/s` : "";
}

function setBox(value, fill = true) {
  box = value;
  if (fill) FIELDS.forEach((name, i) => { $(name).value = value ? Math.round(10 * value[i]) / 10 : ""; });
  paint();
  show("ready");
}

async function open(opening) {
  const mine = ++run;
  source?.close();
  show("empty");
  say("Opening ...");
  try {
    await loop;
    [source, rows, milliseconds] = [null, [], 0];
    const opened = await opening();
    if (mine !== run) return opened.close();
    source = opened;
    latest = await source.next();
    if (!latest) throw new Error(`${source.name} has no frames.`);
    setBox(null);
    say(`${source.name}, ${source.width} x ${source.height} pixels. Drag a box around the target. ${source.note}`);
    while (source.live && state === "ready" && mine === run) {  // a camera, until a box is drawn
      if (box || from) await new Promise(resolve => setTimeout(resolve, 50));
      else if ((latest = await source.next())) paint();
      else throw new Error("The camera has stopped.");
    }
  } catch (error) {
    if (mine === run) fail(error);
  }
}

function fail(error) {
  console.error(error);
  show(rows.length ? "finished" : source ? "ready" : "empty");
  say(error.message, true);
}

function keep(result) {
  rows.push({...latest, ...result});
  paint(result);
}

async function track() {
  const mine = run;
  try {
    say("");
    if (!rows.length) {
      box = visiblePart(box, source);
      await tracker.init(source, box);
      latest = source.restart();
      keep({box, score: 1, lost: false});
    }
    let start = performance.now() - 1000 * latest.time;
    while (state === "playing") {
      const following = await source.next();
      if (mine !== run) return;
      if (!following) {
        show("finished");
        const lost = rows.filter(row => row.lost).length;
        return say(`Done: ${rows.length} frames, lost in ${lost} of them. ${source.note}`);
      }
      latest = following;
      const before = performance.now(), result = await tracker.update(source), took = performance.now() - before;
      if (mine !== run) return;
      milliseconds = milliseconds ? 0.9 * milliseconds + 0.1 * took : took;
      keep(result);
      const early = start + 1000 * latest.time - performance.now();
      if (early < 0) start -= early;  // slower than the video: it goes on from here
      await new Promise(resolve => setTimeout(resolve, Math.max(early, 0)));
    }
  } catch (error) {
    if (mine === run) fail(error);
  }
}

// As the CSV file of `correlation-aware track --boxes`.
function csv() {
  const lines = rows.map(({index, time, box: [x, y, w, h], score, lost}) => [
    index, 0, ...[x, y, w, h].map(value => value.toFixed(3)), score.toFixed(4), Number(lost), time.toFixed(4),
  ].join(","));
  return ["frame,target,x,y,w,h,score,lost,time", ...lines, ""].join("\r\n");
}

function download() {
  const address = URL.createObjectURL(new Blob([csv()], {type: "text/csv"}));
  Object.assign(document.createElement("a"), {href: address, download: `${source.name.replace(/\.\w+$/, "")}.csv`}).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

function position(event) {  // pixels of the frame, inside it
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform($("svg").getScreenCTM().inverse());
  return [Math.min(Math.max(point.x, 0), source.width), Math.min(Math.max(point.y, 0), source.height)];
}

let from = null;
$("svg").onpointerdown = event => {
  if (state !== "ready") return;
  event.preventDefault();
  $("svg").setPointerCapture(event.pointerId);
  from = position(event);
};
$("svg").onpointermove = event => {
  if (!from) return;
  const to = position(event);
  setBox([Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1])]);
};
$("svg").onpointerup = $("svg").onpointercancel = () => {
  if (from && box && (box[2] < 2 || box[3] < 2)) setBox(null);
  from = null;
};
for (const name of FIELDS) {
  $(name).oninput = () => {
    const values = FIELDS.map(field => parseFloat($(field).value));
    setBox(values.every(Number.isFinite) && values[2] > 0 && values[3] > 0 ? values : null, false);
  };
}

let chosen = null;  // the file, to start again
function choose(file) {
  chosen = file;
  open(() => openFile(file));
}

$("file").onchange = () => { if ($("file").files.length) choose($("file").files[0]); $("file").value = ""; };
$("drop").ondragover = event => { event.preventDefault(); $("drop").className = "over"; };
$("drop").ondragleave = () => { $("drop").className = ""; };
$("drop").ondrop = event => {
  event.preventDefault();
  $("drop").className = "";
  if (event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
};
$("camera").hidden = !hasCamera;
$("camera").onclick = () => { chosen = null; open(openCamera); };
$("track").onclick = () => {
  show(state === "playing" ? "paused" : "playing");
  if (state === "playing") loop ??= track().finally(() => { loop = null; });
};
$("again").onclick = () => state === "ready" ? setBox(null) : open(chosen ? () => openFile(chosen) : openCamera);
$("csv").onclick = download;
addEventListener("pagehide", () => source?.close());

say("Loading the model ...");
try {
  tracker = await Tracker.load(new URL("./", document.baseURI), value => { $("progress").value = value; });
  $("about").textContent = `${tracker.model.model}${tracker.model.tag && `.${tracker.model.tag}`}, ${tracker.model.library}`;
  if (source) show(state);
  else say("Choose a video to begin.");
} catch (error) {
  console.error(error);
  say(typeof WebAssembly === "undefined" ? "This browser is too old: it has no WebAssembly." : `The model cannot be loaded: ${error.message}`, true);
}
$("progress").hidden = true;
