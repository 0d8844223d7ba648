// The page: a pad, whose ink is sent to the server after each movement of the pen, and pictures of what comes back.

const LAYERS = ["c1", "s2", "c3", "s4", "c5", "f6"];
const NAMES = ["LeNet-5 today", "LeNet-5 of 1998"];
const SEES = "Point at C3, or tap it, to see what a unit of it looks at.";
const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

const pad = $("#pad");
const paper = pad.getContext("2d", { willReadFrequently: true });
const networks = NAMES.map(build);
const about = await (await fetch("/networks")).json(); // the kernels of C3, the codes of 1998
let last = null; // what the server said last


// What is on the page

function build(name, number) {
  const section = $("#network").content.cloneNode(true).firstElementChild;
  const of1998 = number === 1;
  $("h2", section).textContent = name;
  $(".inputs", section).textContent = of1998 ? "3, 4 or 6" : "all 6";
  $(".f6", section).textContent = of1998
    ? "84 units, which form a picture of 7 × 12. It learned to draw a printed digit here."
    : "84 units. Each sees all of C5.";
  $(".output", section).textContent = of1998
    ? "Penalties: how far F6 is from each printed digit. The smallest wins; if all are over 8, it may be no digit."
    : "How probable each digit is. If none is very probable, it may be no digit.";
  if (!of1998) $(".code", section).remove();
  for (const row of $$(".maps", section)) {
    const { count, width, height = width, label } = row.dataset;
    const columns = count === "16" && width === "10" ? 8 : count;
    row.style.setProperty("--columns", columns);
    if (!row.role) row.role = "img";
    row.ariaLabel = label ?? `${row.closest(".layer").dataset.name.toUpperCase()} of ${name}`;
    for (let i = 0; i < count; i++) {
      const map = row.appendChild(document.createElement("span"));
      map.className = "map";
      map.append(Object.assign(document.createElement("canvas"), { width, height }));
    }
  }
  for (let digit = 0; digit < 10; digit++) {
    const bar = $(".bars", section).appendChild(document.createElement("li"));
    bar.append(...["span", "i", "b"].map((tag) => document.createElement(tag)));
    $("b", bar).textContent = digit;
  }
  $("main").append(section);
  return section;
}

const maps = (network, name) => $$(`[data-name=${name}] > .maps .map`, networks[network]);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).split(" ").map(Number);

// Paint values from -127 to 127, a byte for each pixel, or the ink of a digit from 0 to 255.
function paint(map, values, mix = signed()) {
  const canvas = $("canvas", map);
  const image = new ImageData(canvas.width, canvas.height);
  values.forEach((value, i) => image.data.set([...mix(value), 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function signed() {
  const [below, zero, above] = ["--below", "--zero", "--above"].map(colour);
  return (value) => zero.map((z, k) => z + (Math.abs(value) / 127) * ((value < 0 ? below : above)[k] - z));
}

const grey = (value) => [value, value, value];

function paintAll(row, values, mix) {
  const size = values.length / row.length;
  row.forEach((map, i) => paint(map, values.slice(i * size, (i + 1) * size), mix));
}

const framed = (digit) => // 28 x 28 -> 32 x 32
  Array.from({ length: 1024 }, (_, i) => {
    const [row, column] = [(i >> 5) - 2, (i & 31) - 2];
    return row < 0 || row > 27 || column < 0 || column > 27 ? 0 : digit[28 * row + column];
  });


// What the server says

function show() {
  const mix = signed();
  networks.forEach((section, n) => {
    const found = last?.networks[n];
    section.classList.toggle("found", !!found);
    paintAll(maps(n, "input"), last ? framed(last.digit) : Array(1024).fill(0), grey);
    for (const name of LAYERS) {
      const row = maps(n, name);
      const canvas = $("canvas", row[0]);
      paintAll(row, found?.layers[name] ?? Array(row.length * canvas.width * canvas.height).fill(0), mix);
    }
    paintWhy(section, found, mix);
    bars(section, found, n === 1);
  });
  $("#answer").replaceChildren(...answer(last?.networks[0], false));
  $("#answer-1998").replaceChildren(...answer(last?.networks[1], true));
}

const ofDigit = (found, digit) => found.values[digit];
const percent = (p) => (p > 0.9995 ? ">99.9%" : p < 0.0005 ? "0%" : `${(100 * p).toFixed(p > 0.1 && p < 0.9 ? 0 : 1)}%`);
const penalty = (value) => value.toFixed(value < 10 ? 1 : 0);

// The digit first, and how sure the network is.
function answer(found, of1998) {
  if (!found) return ["Nothing is drawn yet."];
  const digit = document.createElement("b");
  digit.textContent = found.answer;
  const value = ofDigit(found, found.answer);
  const unsure = of1998 ? value > 8 : value < 0.5;
  const how = of1998 ? `penalty ${penalty(value)}` : `${percent(value)} sure`;
  return [digit, ` ${how}${unsure ? "; perhaps it is no digit" : ""}`];
}

function bars(section, found, of1998) {
  const most = of1998 && found ? Math.max(...found.values) : 1;
  $$(".bars li", section).forEach((bar, digit) => {
    const value = found ? ofDigit(found, digit) : 0;
    $("i", bar).style.height = `${(3.4 * value) / most}rem`;
    $("span", bar).textContent = !found ? "" : of1998 ? penalty(value) : percent(value).replace(/\.\d%/, "%");
    bar.classList.toggle("best", digit === found?.answer);
  });
  if (of1998) {
    const code = found ? about.codes[found.answer].map((value) => 127 * value) : Array(84).fill(0);
    paint($(".code .map", section), code);
    $(".nearest", section).textContent = found ? `the printed ${found.answer}` : "";
  }
}

function paintWhy(section, found, mix) {
  // The digit shines through, so that one sees where the colours lie.
  const ink = last ? framed(last.digit) : [];
  let i = 0;
  paint($(".why .map", section), found?.gradient ?? Array(1024).fill(0), (value) => {
    const share = 0.3 * ((ink[i++] ?? 0) / 255);
    return mix(value).map((channel) => channel * (1 - share) + 128 * share);
  });
  $(".because", section).textContent = found ? `Why ${found.answer}?` : "";
}


// Asking the server: one question at a time, always about the newest ink

let asking = false;
let again = false;

async function ask() {
  again = true;
  if (asking) return;
  asking = true;
  pad.ariaBusy = "true";
  while (again) {
    again = false;
    const alpha = paper.getImageData(0, 0, pad.width, pad.height).data.filter((_, i) => i % 4 === 3);
    const blank = alpha.every((value) => value < 128);
    try {
      const response = blank ? null : await fetch("/look", {
        method: "POST",
        headers: { "Content-Type": "application/octet-stream" },
        body: alpha,
      });
      if (response && !response.ok) throw new Error(await response.text());
      last = response && (await response.json());
      show();
    } catch (error) {
      $("#answer").textContent = `The program does not answer; start it again. (${error.message})`;
    }
  }
  asking = false;
  pad.ariaBusy = "false";
  if (!down) say(last ? `${NAMES[0]} reads ${$("#answer").textContent}. ${NAMES[1]} reads ${$("#answer-1998").textContent}.` : "The pad is empty.");
}

const say = (text) => ($("#said").textContent = text); // to a screen reader


// Drawing

let down = false;
let at = [140, 60];

function line(to) {
  paper.lineWidth = $("input[name=width]:checked").value;
  paper.lineCap = paper.lineJoin = "round";
  paper.beginPath();
  paper.moveTo(...at);
  paper.lineTo(...to);
  paper.stroke();
  at = to;
}

function place(event) {
  const box = pad.getBoundingClientRect();
  return [((event.clientX - box.left) * pad.width) / box.width, ((event.clientY - box.top) * pad.height) / box.height];
}

pad.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  stop();
  pad.setPointerCapture(event.pointerId);
  down = true;
  $("#pen").hidden = true;
  at = place(event);
  line(at);
  ask();
});
pad.addEventListener("pointermove", (event) => {
  if (!down || !event.isPrimary || !pad.hasPointerCapture(event.pointerId)) return;
  const between = event.getCoalescedEvents();
  for (const each of between.length ? between : [event]) line(place(each));
  ask();
});
for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, (event) => {
  if (!event.isPrimary) return;
  down = false;
  ask();
});

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function showPen() {
  const pen = $("#pen");
  pen.hidden = false;
  pen.classList.toggle("down", down);
  [pen.style.left, pen.style.top] = at.map((value) => `${value / 2.8}%`);
}

pad.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (move) {
    const to = at.map((value, k) => Math.min(265, Math.max(15, value + 10 * move[k])));
    if (down) line(to), ask();
    at = to;
  } else if (event.key === " ") {
    down = !down;
    say(down ? "The pen is down." : "The pen is up.");
    line(at);
    ask();
  } else if (event.key === "Delete" || event.key === "Backspace") clear();
  else return;
  event.preventDefault();
  showPen();
});
pad.addEventListener("focus", () => pad.matches(":focus-visible") && showPen());
pad.addEventListener("blur", () => {
  $("#pen").hidden = true;
  down = false;
});

function clear() {
  stop();
  down = false;
  paper.clearRect(0, 0, pad.width, pad.height);
  ask();
}

$("#clear").addEventListener("click", clear);

// Strokes through points of a square of 100; | lifts the pen.
const EXAMPLES = [
  "50,2 28,14 16,48 24,84 50,98 76,84 84,48 72,14 50,2", "32,24 55,2 55,98",
  "18,24 30,6 58,2 78,18 74,42 46,70 16,96 84,96", "20,10 50,2 76,16 72,38 44,48 74,56 80,80 54,98 18,90",
  "62,2 14,64 86,64|66,36 66,98", "78,4 28,4 24,44 54,38 80,58 74,86 46,98 18,88",
  "66,2 36,28 20,66 34,94 62,96 78,74 60,54 30,64", "16,4 84,4 58,46 40,98",
  "72,18 50,2 28,18 44,42 72,64 72,86 50,98 26,84 32,62 58,42 72,18",
  "78,26 54,4 26,18 26,42 52,52 76,36 78,26 72,98",
];
let next = 3;
let running = null;

function stop() {
  clearTimeout(running);
  running = null;
}

$("#example").addEventListener("click", () => {
  clear();
  const strokes = EXAMPLES[next].split("|").map((text) => text.split(" ").map((point) => point.split(",").map(Number)));
  next = (next + 4) % 10 === 3 ? 0 : (next + 4) % 10;
  const points = strokes.flatMap((stroke) => smooth(stroke).map((point, i) => [point.map((v) => 40 + 2 * v), i === 0]));
  const slowly = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  (function step() {
    do {
      const [point, lifted] = points.shift();
      if (lifted) at = point;
      line(point);
    } while (!slowly && points.length);
    ask();
    if (points.length) running = setTimeout(step, 16);
  })();
});

// Points along a curve through the given ones (Catmull and Rom), 6 for each; two points give a straight line.
function smooth(p) {
  const curve = [];
  for (let i = 0; i + 1 < p.length; i++)
    for (let t = 0; t < 1; t += 1 / 6) {
      const [a, b, c, d] = [p[i - 1] ?? p[i], p[i], p[i + 1], p[i + 2] ?? p[i + 1]];
      curve.push([0, 1].map((k) => b[k] + 0.5 * t * (c[k] - a[k] + t * (2 * a[k] - 5 * b[k] + 4 * c[k] - d[k] + t * (3 * (b[k] - c[k]) + d[k] - a[k])))));
    }
  return [...curve, p.at(-1)];
}


// What a unit of C3 sees

networks.forEach((section, n) => {
  const row = $("[data-name=c3] > .maps", section);
  row.ariaLabel = `C3 of ${NAMES[n]}: 16 maps, in two rows of 8. Arrow keys move from unit to unit.`;
  let unit = [0, 0]; // column of 80, row of 20
  function point(event) {
    const map = event.target.closest(".map");
    if (!map) return;
    const i = maps(n, "c3").indexOf(map);
    const box = map.getBoundingClientRect();
    const [u, v] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    unit = [10 * (i % 8), 10 * (i >> 3)].map((start, k) => start + Math.min(9, Math.max(0, Math.floor(10 * [u, v][k]))));
    lookAt(n, unit);
  }
  row.addEventListener("pointermove", point);
  row.addEventListener("pointerdown", point);
  row.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && document.activeElement !== row && lookAway(n));
  row.addEventListener("blur", () => lookAway(n));
  row.addEventListener("focus", () => row.matches(":focus-visible") && lookAt(n, unit));
  row.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    unit = unit.map((value, k) => Math.min([79, 19][k], Math.max(0, value + move[k])));
    lookAt(n, unit);
  });
  lookAway(n);
});

function lookAt(n, [u, v]) {
  lookAway(n);
  const section = networks[n];
  const [map, column, row] = [8 * Math.floor(v / 10) + Math.floor(u / 10), u % 10, v % 10];
  const kernels = about.kernels[n][map];
  section.classList.add("looking");
  light(maps(n, "c3")[map], column / 10, row / 10, 1 / 10);
  for (const i of Object.keys(kernels)) light(maps(n, "s2")[i], column / 14, row / 14, 5 / 14);
  for (const i of Object.keys(kernels)) light(maps(n, "c1")[i], column / 14, row / 14, 10 / 28);
  for (const each of [maps(n, "input")[0], $(".why .map", section)]) light(each, column / 16, row / 16, 14 / 32);
  $$(".kernels .map", section).forEach((each, i) => {
    each.classList.toggle("unused", !(i in kernels));
    paint(each, kernels[i] ?? Array(25).fill(0));
  });
  const seen = Object.keys(kernels).map((i) => Number(i) + 1).join(", ");
  $(".sees p", section).textContent = `Map ${map + 1}, row ${row + 1}, column ${column + 1} sees 5 × 5 units of maps ${seen} of S2, each through its own kernel, and so 14 × 14 pixels.`;
}

function light(map, x, y, size) {
  map.classList.add("lit");
  for (const [name, value] of Object.entries({ x, y, size })) map.style.setProperty(`--${name}`, value);
}

function lookAway(n) {
  networks[n].classList.remove("looking");
  for (const map of $$(".lit", networks[n])) map.classList.remove("lit");
  $(".sees p", networks[n]).textContent = SEES;
}


$("#why").addEventListener("click", (event) => {
  const on = document.body.classList.toggle("why");
  event.currentTarget.ariaPressed = on;
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
show();
