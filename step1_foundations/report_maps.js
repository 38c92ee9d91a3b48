// The report's second half: next-token sliders, attention, logit lens, ablation. Uses the helpers of report.js.
"use strict";

// --- next token: shared/sampling.py's filtered_probabilities, on logits that are sorted already ---

const ENTRIES = [
  ...data.next.logits.map((logit) => ({ logit, n: 1 })),
  ...data.next.rest.map((logit, i) => ({ logit, n: i === data.next.rest.length - 1 ? data.next.last : data.next.group })),
];

// Entries are { logit, n }: n tokens of this logit. Returns { p: of one token per entry, kept: tokens left, entropy in bits }.
function filtered({ temperature, topK, topP, minP }) {
  if (temperature === 0) return { p: ENTRIES.map((_, i) => (i ? 0 : 1)), kept: 1, entropy: 0 };
  let p = ENTRIES.map(({ logit }) => Math.exp(logit / temperature)), n = ENTRIES.map((entry) => entry.n);
  const total = () => p.reduce((sum, value, i) => sum + value * n[i], 0);
  if (topK > 0) { let left = topK; n = n.map((m) => { const take = Math.min(m, left); left -= take; return take; }); }
  let mass = total();
  p = p.map((value) => Math.fround(value / mass)); // the sampler works in float32, where the far tail is exactly zero
  n = n.map((m, i) => (p[i] ? m : 0));
  if (topP < 1) {
    let before = 0; // a token stays while the mass before it is below top-p
    n = n.map((m, i) => { const stay = Math.max(0, Math.min(m, Math.ceil((topP - before) / p[i] - 1e-9))); before += m * p[i]; return stay; });
    p = p.map((value, i) => (n[i] ? value : 0));
  }
  if (minP > 0) { const least = minP * p[0]; n = n.map((m, i) => (p[i] >= least ? m : 0)); }
  mass = total();
  p = p.map((value, i) => (n[i] ? value / mass : 0));
  const entropy = -p.reduce((sum, value, i) => sum + (value ? n[i] * value * Math.log2(value) : 0), 0);
  return { p, kept: n.reduce((a, b) => a + b, 0), entropy: Math.max(0, entropy) };
}

{
  const SHOWN = Math.min(12, data.next.ids.length);
  const STOPS = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 0].filter((k) => k <= data.next.ids.length);
  const CONTROLS = [ // id, name in `filtered`, lowest, highest, step, neutral value, slider position → value, how it reads
    ["temperature", "temperature", 0, 2, 0.05, 1, (x) => x, (v) => (v ? v.toFixed(2) : "0, greedy")],
    ["top-k", "topK", 0, STOPS.length - 1, 1, STOPS.length - 1, (x) => STOPS[x], (v) => (v ? String(v) : "off")],
    ["top-p", "topP", 0.05, 1, 0.01, 1, (x) => x, (v) => (v < 1 ? v.toFixed(2) : "off")],
    ["min-p", "minP", 0, 0.5, 0.01, 0, (x) => x, (v) => (v ? v.toFixed(2) : "off")],
  ];
  const neutral = filtered({ temperature: 1, topK: 0, topP: 1, minP: 0 });
  const rows = Array.from({ length: SHOWN + 1 }, (_, i) => {
    const rest = i === SHOWN, piece = rest ? "all others" : visible(data.next.pieces[i]);
    const raw = make("i", { class: "raw" }), drawn = make("i", { class: "drawn" }), value = make("span", { class: "value" });
    const where = rest ? -1 : tokens.findLastIndex((token) => token.id === data.next.ids[i]);
    const label = make("span", rest ? { class: "small", style: "justify-self:end" } : { class: "piece", title: `id ${data.next.ids[i]}` }, piece);
    const line = make("li", { class: rest ? "rest" : "", "data-t": where < 0 ? null : where }, label, make("span", { class: "bar" }, raw, drawn), value);
    $("bars").append(line);
    return { line, raw, drawn, value };
  });
  for (let i = 0; i < size; i++) $("next-context").append(tokenSpan(i));
  $("next-context").append(make("span", { class: "gap" }, "?"));
  const share = (p, i) => (i < SHOWN ? p[i] : Math.max(0, 1 - p.slice(0, SHOWN).reduce((a, b) => a + b, 0)));

  const update = () => {
    const settings = {};
    for (const [id, name, , , , , toValue, read] of CONTROLS) {
      settings[name] = toValue(Number($(id).value));
      $(`${id}-value`).textContent = read(settings[name]);
      $(id).setAttribute("aria-valuetext", read(settings[name]));
    }
    const result = filtered(settings);
    const largest = Math.max(...rows.flatMap((_, i) => [share(neutral.p, i), share(result.p, i)]));
    const full = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1].find((least) => least >= largest - 1e-9) || 1; // round scales: bars stay comparable while a slider moves
    rows.forEach(({ line, raw, drawn, value }, i) => {
      const p = share(result.p, i);
      raw.style.setProperty("--w", share(neutral.p, i) / full);
      drawn.style.setProperty("--w", p / full);
      line.dataset.p = p;
      line.classList.toggle("out", p === 0);
      value.textContent = p ? percent(p, 2) : "–";
    });
    $("next-statistics").textContent = `Entropy ${neutral.entropy.toFixed(2)} bits, ${result.entropy.toFixed(2)} as drawn; ${count(result.kept)} token${result.kept === 1 ? "" : "s"} can be drawn`;
    $("next-statistics").dataset.entropy = result.entropy;
    $("next-statistics").dataset.kept = result.kept;
    const options = [["temperature", settings.temperature, 1], ["top-k", settings.topK, 0], ["top-p", settings.topP, 1], ["min-p", settings.minP, 0]]
      .filter(([, value, off]) => value !== off).map(([name, value]) => ` --${name} ${value}`).join("");
    $("next-command").textContent = data.commands.next + options;
    const wanted = data.next.target;
    $("next-note").textContent = `A full bar is ${percent(full, 0)}. The page holds the ${count(data.next.ids.length)} likeliest tokens one by one and all others in sorted groups of ${data.next.group}, so it computes this here, at every setting.`
      + (wanted ? ` The target ${visible(wanted.text)} has rank ${count(wanted.rank)} and probability ${percent(wanted.probability, 2)}.` : "");
  };
  const reset = () => { for (const [id, , , , , off] of CONTROLS) $(id).value = off; update(); };
  for (const [id, , low, high, step] of CONTROLS) { Object.assign($(id), { min: low, max: high, step }); $(id).addEventListener("input", update); }
  $("reset").addEventListener("click", reset);
  reset();
}

// --- attention ---

const LAYERS = data.made.layers, HEADS = data.made.heads, AREA = (size * (size + 1)) / 2;
const weights = Uint8Array.from(atob(data.attention.maps), (character) => character.charCodeAt(0));
const weight = (layer, head, i, j) => (j > i ? 0 : weights[(layer * HEADS + head) * AREA + (i * (i + 1)) / 2 + j] / 255);
const KINDS = {
  previous: ["--sky", "previous token", "Looks at the token just before. Such heads tell every position what came ahead of it; induction heads build on that."],
  sink: ["--grey", "sink", "Parks its attention on the first token, where it does no harm: it has nothing to say on random text."],
  induction: ["--vermilion", "induction", "Finds an earlier occurrence of the token and looks at what followed it then. This is how a model copies and continues patterns."],
  itself: ["--green", "itself", "Looks at the token itself, so works on each token by itself."],
  mixed: ["--line", "mixed", "No single place gets more than half of its attention: it depends on what the words are, or spreads out."],
};
const labelOf = (layer, head) => data.attention.labels[layer * HEADS + head];
const scoresOf = (layer, head) => data.attention.scores[layer * HEADS + head];
const picked = { layer: 0, head: 0 };
let showHead; // (layer, head): used by the ablation as well

function svgMap(rows, columns, cell, left, top) {
  const svg = make("svg", { width: left + columns * cell + 2, height: top + rows * cell + 2, viewBox: `0 0 ${left + columns * cell + 2} ${top + rows * cell + 2}`, tabindex: "0", role: "application" });
  const cells = Array.from({ length: rows }, () => []);
  const frame = make("rect", { class: "cursor", width: cell, height: cell, visibility: "hidden" });
  const draw = (i, j) => { cells[i][j] = make("rect", { class: "cell", x: left + j * cell, y: top + i * cell, width: cell - 1, height: cell - 1, "data-i": i, "data-j": j }); svg.append(cells[i][j]); };
  const mark = (i, j) => { frame.setAttribute("visibility", "visible"); frame.setAttribute("x", left + j * cell - 0.5); frame.setAttribute("y", top + i * cell - 0.5); };
  return { svg, cells, frame, draw, mark };
}

{
  const names = data.made.labels;
  $("labels").append(...[...names, "mixed"].map((kind) => make("li", { style: `--c:var(${KINDS[kind][0]})` }, `${KINDS[kind][1]} ${data.attention.labels.filter((label) => label === kind).length}`)));
  for (const [id, n] of [["layer", LAYERS], ["head", HEADS]]) {
    $(id).append(...Array.from({ length: n }, (_, i) => make("option", { value: i }, String(i))));
    $(id).addEventListener("change", () => showHead(Number($("layer").value), Number($("head").value)));
  }

  // All heads on one canvas: hundreds of small maps, framed in the colour of what the head does.
  const sheet = $("sheet"), PITCH = Math.max(19, Math.min(30, Math.floor(700 / LAYERS))), EDGE = 24;
  const drawSheet = () => {
    const scale = window.devicePixelRatio || 1, width = EDGE + LAYERS * PITCH, height = EDGE + HEADS * PITCH;
    Object.assign(sheet, { width: width * scale, height: height * scale });
    Object.assign(sheet.style, { width: `${width}px`, height: `${height}px` });
    const pen = sheet.getContext("2d"), style = getComputedStyle(document.documentElement), read = (name) => style.getPropertyValue(name).trim();
    pen.scale(scale, scale);
    pen.font = "11px system-ui, sans-serif"; pen.textAlign = "center"; pen.textBaseline = "middle"; pen.fillStyle = read("--muted");
    for (let layer = 0; layer < LAYERS; layer++) if (LAYERS <= 12 || layer % 5 === 0) pen.fillText(String(layer), EDGE + (layer + 0.5) * PITCH, 11);
    for (let head = 0; head < HEADS; head++) if (HEADS <= 16 || head % 4 === 0) pen.fillText(String(head), 11, EDGE + (head + 0.5) * PITCH);
    const ramp = Array.from({ length: LEVELS + 1 }, (_, i) => `rgb(${colour("v", i)})`), inner = PITCH - 8, grid = Math.min(size, inner);
    for (let layer = 0; layer < LAYERS; layer++) for (let head = 0; head < HEADS; head++) {
      const x = EDGE + layer * PITCH, y = EDGE + head * PITCH;
      pen.fillStyle = read(KINDS[labelOf(layer, head)][0]);
      pen.fillRect(x + 1, y + 1, PITCH - 2, PITCH - 2);
      pen.fillStyle = read("--ground");
      pen.fillRect(x + 3.5, y + 3.5, PITCH - 7, PITCH - 7);
      for (let a = 0; a < grid; a++) for (let b = 0; b < grid; b++) {
        const i = Math.floor((a * size) / grid), j = Math.floor((b * size) / grid);
        if (j > i) continue;
        pen.fillStyle = ramp[level(weight(layer, head, i, j))];
        pen.fillRect(x + 4 + (b * inner) / grid, y + 4 + (a * inner) / grid, inner / grid + 0.3, inner / grid + 0.3);
      }
    }
    pen.strokeStyle = read("--ink"); pen.lineWidth = 2.5;
    pen.strokeRect(EDGE + picked.layer * PITCH, EDGE + picked.head * PITCH, PITCH, PITCH);
  };
  dark.addEventListener("change", drawSheet);
  const sheetCursor = cursor(sheet, HEADS, LAYERS, (event) => {
    if (event.type !== "click") return null; // moving over the sheet chooses nothing
    const box = sheet.getBoundingClientRect(), column = Math.floor((event.clientX - box.left - EDGE) / PITCH), row = Math.floor((event.clientY - box.top - EDGE) / PITCH);
    return row >= 0 && column >= 0 ? [row, column] : null;
  }, (head, layer) => showHead(layer, head));

  // The chosen head, large.
  const CELL = size <= 8 ? 40 : size <= 16 ? 28 : size <= 32 ? 19 : 15;
  const widest = Math.max(...tokens.map((token) => [...short(token.piece)].length)), LEFT = widest * 7.3 + 10;
  const map = svgMap(size, size, CELL, LEFT, LEFT), band = { row: make("rect", { class: "band" }), column: make("rect", { class: "band" }) };
  map.svg.setAttribute("aria-label", "Attention map: rows look at columns. Arrow keys move.");
  map.svg.setAttribute("aria-describedby", "map-readout");
  map.svg.id = "map";
  for (let i = 0; i < size; i++) {
    const middle = LEFT + (i + 0.5) * CELL, name = short(tokens[i].piece);
    map.svg.append(make("text", { x: LEFT - 6, y: middle + 4, "text-anchor": "end", "data-t": i }, name), make("text", { transform: `translate(${middle + 4} ${LEFT - 6}) rotate(-90)`, "data-t": i }, name));
    for (let j = 0; j <= i; j++) map.draw(i, j);
  }
  map.svg.append(band.row, band.column, map.frame);
  $("map-box").append(map.svg);
  drawRamp($("ramp"), "v");
  for (let i = 0; i < size; i++) $("strip").append(tokenSpan(i));

  const readCell = (i, j) => {
    j = Math.min(i, j);
    mapCursor.at[1] = j;
    map.mark(i, j);
    reveal($("map-box"), LEFT + j * CELL, LEFT + (j + 1) * CELL);
    if (active !== i) activate(i);
    $("map-readout").replaceChildren(make("b", { class: "piece" }, visible(tokens[i].piece)), " gives ", make("b", {}, percent(weight(picked.layer, picked.head, i, j))), " of its attention to ", make("b", { class: "piece" }, visible(tokens[j].piece)), ` (token ${i} to token ${j})`);
  };
  const mapCursor = cursor(map.svg, size, size, cellOf, readCell, (i) => { pinned = i; activate(i); });
  map.svg.addEventListener("pointerleave", () => activate(pinned));

  const follow = (index) => {
    for (const [key, x, y, w, h] of [["row", LEFT, LEFT + index * CELL, (index + 1) * CELL, CELL], ["column", LEFT + index * CELL, LEFT + index * CELL, CELL, (size - index) * CELL]]) {
      for (const [name, value] of Object.entries({ x: x - 0.5, y: y - 0.5, width: w, height: h })) band[key].setAttribute(name, value);
    }
    $("strip-title").textContent = `Where ${visible(tokens[index].piece)} looks, in this head:`;
    [...$("strip").children].forEach((node, j) => { node.className = `piece v${level(weight(picked.layer, picked.head, index, j))}${j > index ? " future" : ""}${j === index ? " hot" : ""}`; });
  };
  followers.push(follow);

  showHead = (layer, head) => {
    Object.assign(picked, { layer, head });
    $("layer").value = layer; $("head").value = head;
    sheetCursor.at[0] = head; sheetCursor.at[1] = layer;
    map.cells.forEach((row, i) => row.forEach((cell, j) => cell.setAttribute("class", `cell v${level(weight(layer, head, i, j))}`)));
    const [, name, meaning] = KINDS[labelOf(layer, head)];
    $("head-status").textContent = `Layer ${layer}, head ${head}: ${name}`;
    $("head-meaning").textContent = meaning;
    $("scores").replaceChildren(...names.flatMap((kind, k) => {
      const score = scoresOf(layer, head)[k];
      return [make("dt", {}, KINDS[kind][1]), make("dd", { class: "meter", style: `--w:${score};--c:var(${KINDS[kind][0]})` }, make("i")), make("dd", {}, score.toFixed(2))];
    }));
    $("attention-command").textContent = `${data.commands.attention} --layer ${layer} --head ${head}`;
    $("map-readout").textContent = "Point at a cell, or use the arrow keys in the map.";
    map.frame.setAttribute("visibility", "hidden");
    follow(active);
    drawSheet();
    reveal($("sheet-box"), EDGE + layer * PITCH, EDGE + (layer + 1) * PITCH);
  };
  // Begin with the strongest previous-token head, the easiest one to read.
  const first = data.attention.scores.reduce((best, scores, i, all) => (scores[0] > all[best][0] ? i : best), 0);
  showHead(Math.floor(first / HEADS), first % HEADS);
}

// --- logit lens ---

{
  const { pieces, answers, cells } = data.lens;
  const head = make("tr", {}, make("th", { class: "side" }, "layer"), ...tokens.map((token, j) => make("th", { scope: "col", "data-t": j }, short(token.piece))));
  const body = cells.map((row, i) => make("tr", {}, make("th", { class: "side", scope: "row" }, i ? String(i - 1) : "embed"),
    ...row.map(([piece, , rank, chance], j) => make("td", { class: `v${level(chance)}${rank === 1 ? " said" : ""}`, "data-i": i, "data-j": j }, short(pieces[piece], 14)))));
  const table = make("table", { class: "lens" }, make("thead", {}, head), make("tbody", {}, ...body));
  $("lens-box").append(table);
  const readCell = (i, j) => {
    for (const node of table.querySelectorAll(".cursor")) node.classList.remove("cursor");
    const [piece, p, rank, chance] = cells[i][j], cell = body[i].children[j + 1];
    cell.classList.add("cursor");
    reveal($("lens-box"), cell.offsetLeft, cell.offsetLeft + cell.offsetWidth, body[i].children[0].offsetWidth);
    if (active !== j) activate(j);
    $("lens-readout").replaceChildren(i ? `Layer ${i - 1}, after ` : "Before the first layer, after ", make("b", { class: "piece" }, visible(tokens[j].piece)), ": it would say ", make("b", { class: "piece" }, visible(pieces[piece])), ` (${percent(p)}). The final answer `,
      make("b", { class: "piece" }, visible(answers[j])), ` has rank ${count(rank)} here, ${percent(chance)}.`);
  };
  const place = cursor($("lens-box"), cells.length, size, cellOf, readCell);
  place.at[0] = cells.length - 1; place.at[1] = size - 1;
  table.addEventListener("pointerleave", () => activate(pinned));
  $("lens-box").scrollLeft = $("lens-box").scrollWidth; // the last column is what the page is about
  $("lens-readout").textContent = "Bold: the layer already says what the last one will. Point at a cell, or use the arrow keys in the table.";
}

// --- ablation ---

{
  const { change, target, logprob, asked, seconds } = data.ablation, PARTS = HEADS + 1;
  const largest = Math.max(1e-9, ...change.flat().map(Math.abs));
  $("target").textContent = visible(target);
  $("ablation-title").textContent = `${visible(target)} has log-probability ${signed(logprob)} (${percent(Math.exp(logprob))})${asked ? "" : ", the likeliest next word"}. ${LAYERS * PARTS} ablations took ${seconds.toFixed(1)} s. Choose a head to see its map above.`;
  $("ablation-low").textContent = `−${largest.toFixed(2)} nats`; $("ablation-high").textContent = `+${largest.toFixed(2)}, square-root scale`;
  drawRamp($("ablation-ramp"), "d");
  const CELL = Math.max(19, Math.min(30, Math.floor(690 / LAYERS))), LEFT = 34, TOP = 22;
  const map = svgMap(PARTS, LAYERS, CELL, LEFT, TOP);
  map.svg.setAttribute("aria-label", "Ablation: layers from left to right, heads and the MLP from top to bottom. Arrow keys move, Enter shows a head's map.");
  map.svg.setAttribute("aria-describedby", "ablation-readout");
  map.svg.id = "ablation-map";
  for (let layer = 0; layer < LAYERS; layer++) if (LAYERS <= 12 || layer % 5 === 0) map.svg.append(make("text", { class: "minor", x: LEFT + (layer + 0.5) * CELL, y: 14, "text-anchor": "middle" }, String(layer)));
  for (let part = 0; part < PARTS; part++) {
    if (part === HEADS || HEADS <= 16 || part % 4 === 0) map.svg.append(make("text", { class: "minor", x: LEFT - 6, y: TOP + (part + 0.5) * CELL + 4, "text-anchor": "end" }, part < HEADS ? String(part) : "MLP"));
    for (let layer = 0; layer < LAYERS; layer++) {
      map.draw(part, layer);
      const value = change[layer][part]; // the square root: one part often outweighs all others together
      map.cells[part][layer].setAttribute("class", `cell d${Math.round((LEVELS / 2) * (1 + Math.sign(value) * Math.sqrt(Math.abs(value) / largest)))}`);
    }
  }
  map.svg.append(map.frame);
  $("ablation-box").append(map.svg);
  cursor(map.svg, PARTS, LAYERS, cellOf, (part, layer) => {
    map.mark(part, layer);
    reveal($("ablation-box"), LEFT + layer * CELL, LEFT + (layer + 1) * CELL);
    const value = change[layer][part];
    $("ablation-readout").replaceChildren("Without ", make("b", {}, part < HEADS ? `head ${part} of layer ${layer}` : `the MLP of layer ${layer}`), ": log-probability ", make("b", {}, `${signed(value)} nats`), `, probability ${percent(Math.exp(logprob + value))} instead of ${percent(Math.exp(logprob))}.`);
  }, (part, layer) => { if (part < HEADS) showHead(layer, part); });
  const strongest = change.flatMap((row, layer) => row.map((value, part) => [value, layer, part])).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 3);
  $("ablation-readout").textContent = `Strongest: ${strongest.map(([value, layer, part]) => `${part < HEADS ? `head ${layer}.${part}` : `MLP ${layer}`} ${signed(value)}`).join(", ")} nats. Point at a cell, or use the arrow keys in the map.`;
}

activate(pinned);
document.documentElement.dataset.ready = "true";
