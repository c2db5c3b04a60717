"use strict";
// The page is whole without this: it adds the map, the search, and what one picture is near.
const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const count = data.names.length;
const told = (n) =>
  `cluster ${data.cluster[n]}, confidence ${Math.round(data.confidence[n] * 100)} %, runner-up ${data.second[n]}` +
  (data.label[n] === null ? "" : `, class ${data.label[n]}`);

function look(target, n) {
  target.style.setProperty("--x", n % data.columns);
  target.style.setProperty("--y", Math.floor(n / data.columns));
}

function thumb(n) {
  const button = document.createElement("button");
  button.className = "t";
  button.dataset.n = n;
  button.title = data.names[n];
  button.setAttribute("aria-label", `${data.names[n]}, ${told(n)}`);
  const caption = document.createElement("span");
  caption.textContent = data.cluster[n];
  button.append(caption);
  look(button, n);
  return button;
}

function open(n) {
  element("picture-name").textContent = data.names[n];
  element("picture-told").textContent = told(n);
  look(element("picture-look"), n);
  element("picture-near").replaceChildren(...data.near[n].map(thumb));
  if (!element("picture").open) element("picture").showModal();
}

document.addEventListener("click", (event) => {
  const chosen = event.target.closest("button[data-n]");
  if (chosen) open(Number(chosen.dataset.n));
  if (event.target === element("picture")) element("picture").close(); // beside it
});

// Search
const MOST = 60;
element("search").addEventListener("input", () => {
  const wanted = element("search").value.toLowerCase();
  const found = wanted ? data.names.flatMap((name, n) => (name.toLowerCase().includes(wanted) ? [n] : [])) : [];
  element("results").replaceChildren(...found.slice(0, MOST).map(thumb));
  const shown = found.length > MOST ? `, the first ${MOST} shown` : "";
  element("count").textContent = wanted ? `${found.length} of ${count}${shown}` : "";
});

// Map
const plane = element("plane");
const tip = element("tip");
let only = -1; // the cluster that is shown alone
let current = -1; // the picture that the keyboard is at
let size = [0, 0];

const at = (n) => [12 + data.place[n][0] * (size[0] - 24), 12 + data.place[n][1] * (size[1] - 24)];

function draw() {
  const scale = window.devicePixelRatio || 1;
  size = [plane.clientWidth, plane.clientHeight];
  plane.width = size[0] * scale;
  plane.height = size[1] * scale;
  const pen = plane.getContext("2d");
  pen.scale(scale, scale);
  const radius = count > 800 ? 3 : 4.5;
  for (let n = 0; n < count; n++) {
    pen.globalAlpha = only < 0 || data.cluster[n] === only ? 0.85 : 0.08;
    pen.fillStyle = data.colours[data.cluster[n]];
    pen.beginPath();
    pen.arc(...at(n), radius, 0, 7);
    pen.fill();
  }
  pen.globalAlpha = 1;
  if (current >= 0) {
    pen.strokeStyle = getComputedStyle(plane).color;
    pen.lineWidth = 2.5;
    pen.beginPath();
    pen.arc(...at(current), radius + 4, 0, 7);
    pen.stroke();
  }
}

function nearest(x, y, reach) {
  let best = -1;
  for (let n = 0; n < count; n++) {
    if (only >= 0 && data.cluster[n] !== only) continue;
    const distance = Math.hypot(at(n)[0] - x, at(n)[1] - y);
    if (distance < reach) [best, reach] = [n, distance];
  }
  return best;
}

function show(n) {
  tip.hidden = n < 0;
  if (n < 0) return;
  const picture = document.createElement("div");
  picture.className = "t";
  look(picture, n);
  const text = document.createElement("div");
  text.textContent = `${data.names[n]}\n${told(n)}`;
  tip.replaceChildren(picture, text);
  const [x, y] = at(n);
  tip.style.left = `${Math.max(0, Math.min(x + 14, size[0] - tip.offsetWidth))}px`;
  tip.style.top = `${Math.max(0, Math.min(y + 14, size[1] - tip.offsetHeight))}px`;
}

const place = (event) => {
  const box = plane.getBoundingClientRect();
  return nearest(event.clientX - box.left, event.clientY - box.top, 14);
};
// A pointer at rest "moves" when the page scrolls under it: beside all pictures, the keyboard's stays.
const kept = () => (document.activeElement === plane ? current : -1);
plane.addEventListener("pointermove", (event) => show(place(event) < 0 ? kept() : place(event)));
plane.addEventListener("pointerleave", () => show(kept()));
plane.addEventListener("click", (event) => place(event) >= 0 && open(place(event)));
plane.addEventListener("blur", () => show(-1));

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
function beyond([dx, dy]) {
  // The nearest picture in a quarter of the plane around the arrow's direction.
  const [x, y] = at(current);
  let [best, reach] = [current, Infinity];
  for (let n = 0; n < count; n++) {
    if (only >= 0 && data.cluster[n] !== only) continue;
    const [right, down] = [at(n)[0] - x, at(n)[1] - y];
    const along = right * dx + down * dy;
    const across = Math.abs(right * dy) + Math.abs(down * dx);
    if (along > 0 && across <= along && along + across < reach) [best, reach] = [n, along + across];
  }
  return best;
}
plane.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && current >= 0) {
    event.preventDefault(); // or the same key closes what it opened
    open(current);
  }
  if (!(event.key in STEPS)) return;
  event.preventDefault();
  current = current < 0 ? nearest(size[0] / 2, size[1] / 2, Infinity) : beyond(STEPS[event.key]);
  draw();
  show(current);
  if (current >= 0) element("told").textContent = `${data.names[current]}, ${told(current)}`;
});

document.querySelector(".chips").addEventListener("click", (event) => {
  const chip = event.target.closest("button");
  if (!chip) return;
  only = Number(chip.dataset.cluster);
  for (const other of chip.parentElement.children) other.setAttribute("aria-pressed", String(other === chip));
  draw();
});
new ResizeObserver(draw).observe(plane);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
