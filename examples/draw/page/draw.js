// The page: a pad, whose ink goes to the server after each movement of the pen, and pictures of what comes back.

const NAMES = ["LeNet-5 today", "LeNet-5 of 1998"];
const ANSWERS = ["#answer", "#answer-1998"];
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const clip = (value, least, most) => Math.min(most, Math.max(least, value));

const pad = $("#pad");
const paper = pad.getContext("2d", { willReadFrequently: true });
const networks = NAMES.map(build);
const about = await (await fetch("/networks")).json(); // C3's kernels, and the printed digits of 1998
let last = null; // what the server said last

function build(name, n) {
  const section = $("#network").content.cloneNode(true).firstElementChild;
  section.classList.add(n === 0 ? "today" : "old");
  for (const element of $$(n === 0 ? ".old" : ".today", section)) element.remove();
  $("h2", section).textContent = name;
  for (const maps of $$(".maps", section)) {
    const { count, width, height = width } = maps.dataset;
    maps.style.setProperty("--columns", width === "10" ? 8 : count);
    if (!maps.hasAttribute("role")) maps.setAttribute("role", "img");
    for (let i = 0; i < count; i++) {
      const map = maps.appendChild(document.createElement("span"));
      map.className = "map";
      map.append(Object.assign(document.createElement("canvas"), { width, height }));
    }
  }
  for (let digit = 0; digit < 10; digit++) {
    const bar = $(".bars", section).appendChild(document.createElement("li"));
    bar.append(...["span", "i", "b"].map((tag) => document.createElement(tag)));
    $("b", bar).textContent = digit;
  }
  return $("main").appendChild(section);
}


// Pictures

const maps = (n, name) => $$(`[data-name=${name}] > .maps:not(.code) .map`, networks[n]);

// Paint values into maps of equal size; `mix` makes a colour of each. Without values, they are 0.
function paint(maps, values, mix) {
  const { width, height } = $("canvas", maps[0]);
  maps.forEach((map, m) => {
    const image = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) image.data.set(mix(values?.[m * width * height + i] ?? 0, i), 4 * i);
    $("canvas", map).getContext("2d").putImageData(image, 0, 0);
  });
}

const grey = (value) => [value, value, value, 255];

// Colours for values from -127 to 127.
function colours() {
  const style = getComputedStyle(document.documentElement);
  const [below, zero, above] = ["--below", "--zero", "--above"].map((name) => style.getPropertyValue(name).split(" "));
  const mixed = (value) => zero.map((z, k) => z - (Math.abs(value) / 127) * (z - (value < 0 ? below : above)[k]));
  const table = Array.from({ length: 255 }, (_, i) => new Uint8Array([...mixed(i - 127), 255]));
  return (value) => table[value + 127];
}

function show() {
  const mix = colours();
  networks.forEach((section, n) => {
    const found = last?.networks[n];
    paint(maps(n, "input"), last?.digit, grey);
    for (const name of ["c1", "s2", "c3", "s4", "c5", "f6"]) paint(maps(n, name), found?.layers[name], mix);
    const shine = (value, i) => [...mix(value).slice(0, 3), 255 - 0.35 * (last?.digit[i] ?? 0)]; // so that ink is seen
    paint($$(".why .map", section), found?.gradient, shine);
    $(".why b", section).textContent = found ? `Why ${found.answer}?` : "";
    $$(".bars li", section).forEach((bar, digit) => {
      const value = found?.values[digit] ?? 0;
      $("i", bar).style.height = `${(3 * value) / (n === 0 ? 1 : Math.max(...(found?.values ?? [1])))}rem`;
      $("span", bar).textContent = !found ? "" : n === 0 ? percent(value, 0) : penalty(value);
      bar.classList.toggle("best", digit === found?.answer);
    });
    if (n === 1) {
      paint($$(".code .map", section), found && about.codes[found.answer].map((value) => 127 * value), mix);
      $(".nearest", section).textContent = found ? `the printed ${found.answer}` : "";
    }
    $(ANSWERS[n]).replaceChildren(...answer(found, n));
  });
}

// 0.978 -> 97.8%, and never 100%.
function percent(p, digits) {
  const most = 100 - 10 ** -digits;
  return 100 * p > most + 10 ** -digits / 2 ? `>${most}%` : `${(100 * p).toFixed(digits)}%`;
}
const penalty = (value) => value.toFixed(value < 10 ? 1 : 0);

// The digit first, and how sure the network is.
function answer(found, n) {
  if (!found) return ["Nothing is drawn yet."];
  const value = found.values[found.answer];
  const digit = document.createElement("b");
  digit.textContent = found.answer;
  const sure = n === 0 ? `${percent(value, 1)} sure` : `penalty ${penalty(value)}`;
  const perhaps = (n === 0 ? value < 0.5 : value > 8) ? ", so perhaps it is no digit" : "";
  return [digit, ` ${sure}${perhaps}`];
}


// Asking the server: one question at a time, always about the newest ink

let asking = false;
let again = false;

async function ask() {
  again = true;
  if (asking) return;
  asking = true;
  pad.setAttribute("aria-busy", "true");
  while (again) {
    again = false;
    const { data } = paper.getImageData(0, 0, pad.width, pad.height);
    const ink = new Uint8Array(data.length / 4);
    for (let i = 0; i < ink.length; i++) ink[i] = data[4 * i + 3]; // how opaque it is
    const headers = { "Content-Type": "application/octet-stream" };
    try {
      const drawn = ink.some((value) => value > 127);
      const response = drawn && (await fetch("/look", { method: "POST", headers, body: ink }));
      if (response && !response.ok) throw new Error(await response.text());
      last = response ? await response.json() : null;
      show();
      if (!down) say(NAMES.map((name, n) => `${name}: ${$(ANSWERS[n]).textContent}`).join(". "));
    } catch (error) {
      $("#answer").textContent = `The program does not answer; start it again. (${error.message})`;
    }
  }
  asking = false;
  pad.setAttribute("aria-busy", "false");
}

const say = (text) => ($("#said").textContent = text); // to a screen reader


// Drawing

let at = [140, 60]; // where the pen is
let down = false; // whether it is on the paper
let pointer = null; // the mouse, finger or pen that moves it

function line(to) {
  Object.assign(paper, { lineWidth: $("[name=width]:checked").value, lineCap: "round" });
  paper.beginPath();
  paper.moveTo(...at);
  paper.lineTo(...to);
  paper.stroke();
  at = to;
}

// Where in an element something happens: [0, 0] is its upper left corner, [1, 1] its lower right one.
function inside(element, event) {
  const box = element.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

const place = (event) => inside(pad, event).map((value) => value * pad.width);

pad.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || pointer !== null) return;
  clearTimeout(example);
  $("#pen").hidden = true;
  pointer = event.pointerId;
  down = true;
  at = place(event);
  line(at);
  ask();
  pad.setPointerCapture(pointer); // also outside the pad
});
pad.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  const between = event.getCoalescedEvents();
  for (const each of between.length ? between : [event]) line(place(each));
  ask();
});
for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) pad.addEventListener(kind, (event) => {
  if (event.pointerId !== pointer) return;
  pointer = null;
  down = false;
  ask();
});

pad.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (move) {
    const to = at.map((value, k) => clip(value + 10 * move[k], 15, 265));
    if (down) line(to), ask();
    at = to;
  } else if (event.key === " ") {
    down = !down;
    say(down ? "The pen is down." : "The pen is up.");
    if (down) line(at);
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

function showPen() {
  const pen = $("#pen");
  pen.hidden = false;
  pen.classList.toggle("down", down);
  [pen.style.left, pen.style.top] = at.map((value) => `${value / 2.8}%`);
}

function clear() {
  clearTimeout(example);
  down = false;
  paper.clearRect(0, 0, pad.width, pad.height);
  ask();
}

$("#clear").addEventListener("click", clear);
$("#why").addEventListener("click", (event) => {
  event.currentTarget.setAttribute("aria-pressed", document.body.classList.toggle("asked"));
});


// Draw one for me: strokes through points of a square of 100; | lifts the pen

const EXAMPLES = [
  "50,2 28,14 16,48 24,84 50,98 76,84 84,48 72,14 50,2", "56,2 46,98",
  "18,24 30,6 58,2 78,18 74,42 46,70 16,96|16,96 84,96", "20,10 50,2 76,16 72,38 44,48|44,48 74,56 80,80 54,98 18,90",
  "62,2 14,64|14,64 86,64|66,36 66,98", "78,4 28,4|28,4 24,44|24,44 54,38 80,58 74,86 46,98 18,88",
  "66,2 36,28 20,66 34,94 62,96 78,74 60,54 30,64", "16,4 84,4|84,4 58,46 40,98",
  "72,18 50,2 28,18 44,42 72,64 72,86 50,98 26,84 32,62 58,42 72,18",
  "78,26 54,4 26,18 26,42 52,52 76,36 78,26|78,26 72,98",
];
let next = 3;
let example = 0; // the timer

$("#example").addEventListener("click", () => {
  clear();
  const points = EXAMPLES[next].split("|").flatMap((stroke) => {
    const corners = stroke.split(" ").map((point) => point.split(",").map((value) => 40 + 2 * value));
    return curve(corners).map((to, i) => ({ to, first: i === 0 }));
  });
  const atOnce = matchMedia("(prefers-reduced-motion: reduce)").matches;
  next = (next + 7) % 10;
  (function step() {
    for (const { to, first } of points.splice(0, atOnce ? points.length : 1)) {
      if (first) at = to;
      line(to);
    }
    ask();
    if (points.length) example = setTimeout(step, 20);
  })();
});

// A smooth curve through points p (Catmull and Rom), with 6 points between two of them.
function curve(p) {
  const between = (i, t) => [0, 1].map((k) => {
    const [a, b, c, d] = [-1, 0, 1, 2].map((step) => p[clip(i + step, 0, p.length - 1)][k]);
    return b + (t / 2) * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
  });
  return [...Array(6 * p.length - 5).keys()].map((i) => between(Math.floor(i / 6), (i % 6) / 6));
}


// What a unit of C3 sees

networks.forEach((section, n) => {
  const row = $("[data-name=c3] > .maps", section);
  let unit = [0, 0]; // its column of 80 and its row of 20, as the maps lie on the page
  for (const kind of ["pointermove", "pointerdown"]) row.addEventListener(kind, (event) => {
    const map = event.target.closest(".map");
    if (!map) return; // between two
    const i = maps(n, "c3").indexOf(map);
    unit = inside(map, event).map((value, k) => 10 * [i % 8, i >> 3][k] + clip(Math.floor(10 * value), 0, 9));
    lookAt(n, ...unit);
  });
  row.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    unit = unit.map((value, k) => clip(value + move[k], 0, [79, 19][k]));
    lookAt(n, ...unit);
  });
  row.addEventListener("focus", () => row.matches(":focus-visible") && lookAt(n, ...unit));
  row.addEventListener("blur", () => lookAway(n));
  row.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse" && document.activeElement !== row) lookAway(n); // a tap stays
  });
  lookAway(n);
});

function lookAt(n, u, v) {
  lookAway(n);
  const [map, column, row] = [8 * Math.floor(v / 10) + Math.floor(u / 10), u % 10, v % 10];
  const kernels = about.kernels[n][map];
  const seen = Object.keys(kernels).map(Number);
  light([maps(n, "c3")[map]], column / 10, row / 10, 1 / 10);
  light(seen.map((i) => maps(n, "s2")[i]), column / 14, row / 14, 5 / 14);
  light(seen.map((i) => maps(n, "c1")[i]), column / 14, row / 14, 10 / 28);
  light($$("[data-name=input] .map", networks[n]), column / 16, row / 16, 14 / 32);
  $$(".sees .map", networks[n]).forEach((each, i) => {
    each.classList.toggle("unused", !(i in kernels));
    paint([each], kernels[i], colours());
  });
  networks[n].classList.add("looking");
  $(".sees p", networks[n]).textContent = `Row ${row + 1}, column ${column + 1} of map ${map + 1}: \
through these kernels it sees maps ${seen.map((i) => i + 1).join(", ")} of S2, so 14 × 14 pixels.`;
}

function light(maps, x, y, size) {
  for (const map of maps) {
    map.classList.add("lit");
    for (const [name, value] of Object.entries({ x, y, size })) map.style.setProperty(`--${name}`, value);
  }
}

function lookAway(n) {
  networks[n].classList.remove("looking");
  for (const map of $$(".lit", networks[n])) map.classList.remove("lit");
  $(".sees p", networks[n]).textContent = "Point at a unit of C3, or tap it, to see what it looks at.";
}


matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
show();
