// Live operation: /live every two seconds, drawn as line charts. A line differs from its neighbours by its dashes as
// well as by its colour.

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [360, 132, 48, 8, 8, 20];
const KINDS = 4; // kinds of error with a line of their own; the others share one

let points = [];
let [interval, span] = [2, 600]; // seconds; the service says what they are
let cursor = null; // the time that is being read; null is now
let lastAnswer = null; // when /live last answered
const kinds = []; // of errors, in the order in which they first appeared, so that a kind keeps its colour

const CHARTS = [
  { title: "Throughput", unit: "tokens/s", lines: () => [line("generated", number, (p) => p.tokens)] },
  {
    title: "Time to first token",
    unit: "",
    axis: seconds,
    lines: () => [line("p50", seconds, (p) => p.p50), line("p95", seconds, (p) => p.p95)],
  },
  {
    title: "Requests",
    unit: "",
    lines: () => [
      line("in flight", number, (p) => p.in_flight),
      line("queued", number, (p) => p.queued),
      line("slots", number, (p) => p.slots),
    ],
  },
  { title: "Errors", unit: "per second", lines: errorLines, empty: "none" },
  { title: "Cost", unit: "", axis: shortDollars, lines: costLines },
];

function line(label, format, of) {
  return { label, format, values: points.map(of) };
}

function errorLines() {
  for (const point of points) for (const kind of Object.keys(point.errors)) if (!kinds.includes(kind)) kinds.push(kind);
  const rate = (names) => (p) => names.reduce((sum, name) => sum + (p.errors[name] ?? 0), 0) / interval;
  const lines = kinds.slice(0, KINDS).map((kind) => line(kind, number, rate([kind])));
  if (kinds.length > KINDS) lines.push(line("other", number, rate(kinds.slice(KINDS))));
  return lines.filter(({ values }) => values.some((value) => value > 0));
}

// As short as an axis needs it: a small model's answer costs millionths of a dollar.
function shortDollars(value) {
  if (value < 1e-4) return `${number(value * 1e6)} µ$`;
  return value < 1 ? `${number(value * 100)} ¢` : dollars(value);
}

function costLines() {
  let sum = 0;
  return [line("spent in this time", dollars, (p) => (sum += p.cost))];
}

// -- drawing --

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// The smallest 1, 2 or 5 times a power of ten that is not below.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999) ?? 1;
}

const x = (time, end) => LEFT + (WIDTH - LEFT - RIGHT) * (1 - (end - time) / span);

// A path through the values, interrupted where there is none or the service was not there.
function path(values, end, y) {
  let steps = "";
  let before = -Infinity;
  points.forEach(({ t }, i) => {
    if (values[i] === null) return (before = -Infinity);
    const at = `${x(t, end).toFixed(1)} ${y(values[i]).toFixed(1)}`;
    steps += t - before > 3 * interval ? `M${at}h0` : `L${at}`; // h0: a lone value is a dot
    before = t;
  });
  return steps;
}

function draw(chart) {
  const end = points.at(-1)?.t ?? 0;
  const lines = chart.lines();
  const top = ceiling(Math.max(...lines.flatMap(({ values }) => values), 0) || 1);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const grid = [0, top / 2, top].flatMap((value) => [
    svg("path", { class: "grid", d: `M${LEFT} ${y(value)}H${WIDTH - RIGHT}` }),
    svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, value ? (chart.axis ?? number)(value) : "0"),
  ]);
  const times = [["start", span], ["middle", span / 2], ["end", 0]].map(([anchor, ago]) =>
    svg("text", { x: x(end - ago, end), y: HEIGHT - 5, "text-anchor": anchor }, ago ? `−${ago / 60} min` : "now"));
  const index = shown();
  const marks = cursor === null || index < 0 ? [] : [
    svg("path", { class: "cursor", d: `M${x(points[index].t, end)} ${TOP}V${HEIGHT - BOTTOM}` })];
  const paths = lines.map(({ label, values }) =>
    svg("path", { class: `line l${place(chart, lines, label)}`, d: path(values, end, y), "data-line": label }));
  chart.picture.replaceChildren(...grid, ...times, ...marks, ...paths);

  const readings = lines.map(({ label, format, values }) => [label, values[index] == null ? "–" : format(values[index])]);
  const unit = chart.unit ? ` ${chart.unit}` : "";
  chart.legend.replaceChildren(
    ...readings.map(([label, value]) =>
      element("li", { class: `l${place(chart, lines, label)}` }, `${label} `, element("b", {}, value), unit)),
    ...(lines.length ? [] : [element("li", { class: "none" }, chart.empty)]),
  );
  const words = readings.map(([label, value]) => `${label} ${value}${unit}`).join(", ") || chart.empty;
  chart.picture.setAttribute("aria-label", `${chart.title}, ${moment(index)}: ${words}`);
  chart.when.textContent = cursor === null ? "" : moment(index);
}

// Which colour and dashes a line has: an error's own, of the others the order.
function place(chart, lines, label) {
  if (chart.lines !== errorLines) return lines.findIndex((line) => line.label === label);
  return label === "other" ? KINDS : kinds.indexOf(label);
}

// The index of the point that is being read: the last one, or the one nearest to the cursor.
function shown() {
  if (cursor === null) return points.length - 1;
  const distances = points.map(({ t }) => Math.abs(t - cursor));
  return distances.indexOf(Math.min(...distances));
}

function moment(index) {
  if (cursor === null || index < 0) return "now";
  const ago = Math.round(points.at(-1).t - points[index].t);
  return ago >= 60 ? `${Math.floor(ago / 60)} min ${ago % 60} s ago` : `${ago} s ago`;
}

function drawAll() {
  CHARTS.forEach(draw);
}

function drawEngines(engines) {
  $("engines").querySelector("ul").replaceChildren(...engines.map(({ url, name, ready, in_flight, slots }) =>
    element("li", {},
      element("b", { class: ready ? "good" : "bad" }, ready ? "ready" : "not ready"), ` ${name}`,
      element("small", {}, `${url}, ${in_flight} of ${slots} slots in use`))));
}

// -- reading a moment: the same one in all charts --

function read(time) {
  cursor = time;
  drawAll();
}

function addChart(chart) {
  chart.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: "0" });
  chart.legend = element("ul", { class: "legend" });
  chart.when = element("small", { class: "note" });
  const head = element("h3", {}, chart.title, " ", chart.when);
  $("engines").before(element("div", { class: "tile" }, head, chart.legend, chart.picture));

  chart.picture.addEventListener("pointermove", (event) => {
    const box = chart.picture.getBoundingClientRect();
    const share = (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
    if (points.length) read(points.at(-1).t - span * (1 - share));
  });
  chart.picture.addEventListener("pointerleave", () => read(null));
  chart.picture.addEventListener("blur", () => read(null));
  chart.picture.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !points.length) return;
    event.preventDefault();
    read(points[Math.min(points.length - 1, Math.max(0, shown() + step))].t);
  });
}

// -- the figures --

async function poll() {
  for (;;) {
    if (!document.hidden) await update();
    await pause(1000 * interval);
  }
}

async function update() {
  try {
    const response = await fetch(`/live?after=${points.at(-1)?.t ?? 0}`, { headers: authorization() });
    if (!response.ok) throw new Error(response.status === 401 ? "The figures need an API key." : await refusal(response));
    const figures = await response.json();
    ({ interval, span } = figures);
    points = [...points, ...figures.points];
    points = points.filter(({ t }) => t > points.at(-1).t - span);
    lastAnswer = new Date();
    $("live-state").textContent = points.length ? "" : "The first figures come in a moment.";
    drawEngines(figures.engines);
    drawAll();
  } catch (error) {
    const since = lastAnswer ? ` These are from ${lastAnswer.toLocaleTimeString()}.` : "";
    const reason = error instanceof TypeError ? "The service does not answer." : error.message;
    $("live-state").textContent = reason + since;
  }
}

CHARTS.forEach(addChart);
drawAll();
document.addEventListener("visibilitychange", () => document.hidden || update());
poll();
