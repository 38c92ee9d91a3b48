// The report's attention section: all heads on one sheet, the chosen one large.
"use strict";

// --- attention ---

const LAYERS = data.made.layers,
  HEADS = data.made.heads,
  AREA = (size * (size + 1)) / 2;
const weights = Uint8Array.from(atob(data.attention.maps), (character) => character.charCodeAt(0));
const weight = (layer, head, i, j) => (j > i ? 0 : weights[(layer * HEADS + head) * AREA + (i * (i + 1)) / 2 + j] / 255);
const KINDS = {
  previous: [
    "--sky",
    "previous token",
    "Looks at the token just before. Such heads tell every position what came ahead of it; induction heads build on that.",
  ],
  sink: ["--grey", "sink", "Parks its attention on the first token, where it does no harm: it has nothing to say on random text."],
  induction: [
    "--vermilion",
    "induction",
    "Finds an earlier occurrence of the token and looks at what followed it then. This is how a model copies and continues patterns.",
  ],
  itself: ["--green", "itself", "Looks at the token itself, so works on each token by itself."],
  mixed: ["--line", "mixed", "No single place gets more than half of its attention: it depends on what the words are, or spreads out."],
};
const labelOf = (layer, head) => data.attention.labels[layer * HEADS + head];
const scoresOf = (layer, head) => data.attention.scores[layer * HEADS + head];
const picked = { layer: 0, head: 0 };
let showHead; // (layer, head): used by the ablation as well

function svgMap(rows, columns, cell, left, top) {
  const svg = make("svg", {
    width: left + columns * cell + 2,
    height: top + rows * cell + 2,
    viewBox: `0 0 ${left + columns * cell + 2} ${top + rows * cell + 2}`,
    tabindex: "0",
    role: "application",
  });
  const cells = Array.from({ length: rows }, () => []);
  const frame = make("rect", { class: "cursor", width: cell, height: cell, visibility: "hidden" });
  const draw = (i, j) => {
    cells[i][j] = make("rect", {
      class: "cell",
      x: left + j * cell,
      y: top + i * cell,
      width: cell - 1,
      height: cell - 1,
      "data-i": i,
      "data-j": j,
    });
    svg.append(cells[i][j]);
  };
  const mark = (i, j) => {
    frame.setAttribute("visibility", "visible");
    frame.setAttribute("x", left + j * cell - 0.5);
    frame.setAttribute("y", top + i * cell - 0.5);
  };
  return { svg, cells, frame, draw, mark };
}

{
  const names = data.made.labels;
  $("labels").append(
    ...[...names, "mixed"].map((kind) =>
      make(
        "li",
        { style: `--c:var(${KINDS[kind][0]})` },
        `${KINDS[kind][1]} ${data.attention.labels.filter((label) => label === kind).length}`,
      ),
    ),
  );
  for (const [id, n] of [
    ["layer", LAYERS],
    ["head", HEADS],
  ]) {
    $(id).append(...Array.from({ length: n }, (_, i) => make("option", { value: i }, String(i))));
    $(id).addEventListener("change", () => showHead(Number($("layer").value), Number($("head").value)));
  }

  // All heads on one canvas: hundreds of small maps, framed in the colour of what the head does.
  const sheet = $("sheet"),
    PITCH = Math.max(19, Math.min(30, Math.floor(700 / LAYERS))),
    EDGE = 24;
  const drawSheet = () => {
    const scale = window.devicePixelRatio || 1,
      width = EDGE + LAYERS * PITCH,
      height = EDGE + HEADS * PITCH;
    Object.assign(sheet, { width: width * scale, height: height * scale });
    Object.assign(sheet.style, { width: `${width}px`, height: `${height}px` });
    const pen = sheet.getContext("2d"),
      style = getComputedStyle(document.documentElement),
      read = (name) => style.getPropertyValue(name).trim();
    pen.scale(scale, scale);
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillStyle = read("--muted");
    for (let layer = 0; layer < LAYERS; layer++)
      if (LAYERS <= 12 || layer % 5 === 0) pen.fillText(String(layer), EDGE + (layer + 0.5) * PITCH, 11);
    for (let head = 0; head < HEADS; head++) if (HEADS <= 16 || head % 4 === 0) pen.fillText(String(head), 11, EDGE + (head + 0.5) * PITCH);
    const ramp = Array.from({ length: LEVELS + 1 }, (_, i) => `rgb(${colour("v", i)})`),
      inner = PITCH - 8,
      grid = Math.min(size, inner);
    for (let layer = 0; layer < LAYERS; layer++)
      for (let head = 0; head < HEADS; head++) {
        const x = EDGE + layer * PITCH,
          y = EDGE + head * PITCH;
        pen.fillStyle = read(KINDS[labelOf(layer, head)][0]);
        pen.fillRect(x + 1, y + 1, PITCH - 2, PITCH - 2);
        pen.fillStyle = read("--ground");
        pen.fillRect(x + 3.5, y + 3.5, PITCH - 7, PITCH - 7);
        for (let a = 0; a < grid; a++)
          for (let b = 0; b < grid; b++) {
            if (b > a) continue;
            let most = 0; // a small square that stands for several weights shows the largest, or diagonals would break up
            for (let i = Math.floor((a * size) / grid); i < ((a + 1) * size) / grid; i++) {
              for (let j = Math.floor((b * size) / grid); j < ((b + 1) * size) / grid; j++)
                most = Math.max(most, weight(layer, head, i, j));
            }
            pen.fillStyle = ramp[level(most)];
            pen.fillRect(x + 4 + (b * inner) / grid, y + 4 + (a * inner) / grid, inner / grid + 0.3, inner / grid + 0.3);
          }
      }
    pen.strokeStyle = read("--ink");
    pen.lineWidth = 2.5;
    pen.strokeRect(EDGE + picked.layer * PITCH, EDGE + picked.head * PITCH, PITCH, PITCH);
  };
  dark.addEventListener("change", drawSheet);
  const sheetCursor = cursor(
    sheet,
    HEADS,
    LAYERS,
    (event) => {
      if (event.type !== "click") return null; // moving over the sheet chooses nothing
      const box = sheet.getBoundingClientRect(),
        column = Math.floor((event.clientX - box.left - EDGE) / PITCH),
        row = Math.floor((event.clientY - box.top - EDGE) / PITCH);
      return row >= 0 && column >= 0 ? [row, column] : null;
    },
    (head, layer) => showHead(layer, head),
  );

  // The chosen head, large.
  const CELL = size <= 8 ? 40 : size <= 16 ? 28 : size <= 32 ? 19 : 15;
  const widest = Math.max(...tokens.map((token) => [...short(token.piece)].length)),
    LEFT = widest * 7.3 + 10;
  const map = svgMap(size, size, CELL, LEFT, LEFT),
    band = { row: make("rect", { class: "band" }), column: make("rect", { class: "band" }) };
  map.svg.setAttribute("aria-label", "Attention map: rows look at columns. Arrow keys move.");
  map.svg.setAttribute("aria-describedby", "map-readout");
  map.svg.id = "map";
  for (let i = 0; i < size; i++) {
    const middle = LEFT + (i + 0.5) * CELL,
      name = short(tokens[i].piece);
    map.svg.append(
      make("text", { x: LEFT - 6, y: middle + 4, "text-anchor": "end", "data-t": i }, name),
      make("text", { transform: `translate(${middle + 4} ${LEFT - 6}) rotate(-90)`, "data-t": i }, name),
    );
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
    $("map-readout").replaceChildren(
      make("b", { class: "piece" }, visible(tokens[i].piece)),
      " gives ",
      make("b", {}, percent(weight(picked.layer, picked.head, i, j))),
      " of its attention to ",
      make("b", { class: "piece" }, visible(tokens[j].piece)),
      ` (token ${i} to token ${j})`,
    );
  };
  const mapCursor = cursor(map.svg, size, size, cellOf, readCell, (i) => {
    pinned = i;
    activate(i);
  });
  map.svg.addEventListener("pointerleave", () => activate(pinned));

  const follow = (index) => {
    for (const [key, x, y, w, h] of [
      ["row", LEFT, LEFT + index * CELL, (index + 1) * CELL, CELL],
      ["column", LEFT + index * CELL, LEFT + index * CELL, CELL, (size - index) * CELL],
    ]) {
      for (const [name, value] of Object.entries({ x: x - 0.5, y: y - 0.5, width: w, height: h })) band[key].setAttribute(name, value);
    }
    $("strip-title").textContent = `Where ${visible(tokens[index].piece)} looks, in this head:`;
    [...$("strip").children].forEach((node, j) => {
      node.className = `piece v${level(weight(picked.layer, picked.head, index, j))}${j > index ? " future" : ""}${j === index ? " hot" : ""}`;
    });
  };
  followers.push(follow);

  showHead = (layer, head) => {
    Object.assign(picked, { layer, head });
    $("layer").value = layer;
    $("head").value = head;
    sheetCursor.at[0] = head;
    sheetCursor.at[1] = layer;
    map.cells.forEach((row, i) => row.forEach((cell, j) => cell.setAttribute("class", `cell v${level(weight(layer, head, i, j))}`)));
    const [, name, meaning] = KINDS[labelOf(layer, head)];
    $("head-status").textContent = `Layer ${layer}, head ${head}: ${name}`;
    $("head-meaning").textContent = meaning;
    $("scores").replaceChildren(
      ...names.flatMap((kind, k) => {
        const score = scoresOf(layer, head)[k];
        return [
          make("dt", {}, KINDS[kind][1]),
          make("dd", { class: "meter", style: `--w:${score};--c:var(${KINDS[kind][0]})` }, make("i")),
          make("dd", {}, score.toFixed(2)),
        ];
      }),
    );
    command($("attention-command"), `${data.commands.attention} --layer ${layer} --head ${head}`);
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
