// The report's logit lens and ablation sections; the last of the scripts, so it starts the page.
"use strict";

// --- logit lens ---

{
  const { pieces, answers, cells } = data.lens;
  const head = make(
    "tr",
    {},
    make("th", { class: "side" }, "layer"),
    ...tokens.map((token, j) => make("th", { scope: "col", "data-t": j }, short(token.piece))),
  );
  const body = cells.map((row, i) =>
    make(
      "tr",
      {},
      make("th", { class: "side", scope: "row" }, i ? String(i - 1) : "embed"),
      ...row.map(([piece, , rank, chance], j) =>
        make("td", { class: `v${level(chance)}${rank === 1 ? " said" : ""}`, "data-i": i, "data-j": j }, short(pieces[piece], 14)),
      ),
    ),
  );
  const table = make("table", { class: "lens" }, make("thead", {}, head), make("tbody", {}, ...body));
  $("lens-box").append(table);
  const readCell = (i, j) => {
    for (const node of table.querySelectorAll(".cursor")) node.classList.remove("cursor");
    const [piece, p, rank, chance] = cells[i][j],
      cell = body[i].children[j + 1];
    cell.classList.add("cursor");
    reveal($("lens-box"), cell.offsetLeft, cell.offsetLeft + cell.offsetWidth, body[i].children[0].offsetWidth);
    if (active !== j) activate(j);
    $("lens-readout").replaceChildren(
      i ? `Layer ${i - 1}, after ` : "Before the first layer, after ",
      make("b", { class: "piece" }, visible(tokens[j].piece)),
      ": it would say ",
      make("b", { class: "piece" }, visible(pieces[piece])),
      ` (${percent(p)}). The final answer `,
      make("b", { class: "piece" }, visible(answers[j])),
      ` has rank ${count(rank)} here, ${percent(chance)}.`,
    );
  };
  const place = cursor($("lens-box"), cells.length, size, cellOf, readCell);
  place.at[0] = cells.length - 1;
  place.at[1] = size - 1;
  table.addEventListener("pointerleave", () => activate(pinned));
  $("lens-box").scrollLeft = $("lens-box").scrollWidth; // the last column is what the page is about
  $("lens-readout").textContent =
    "Bold: the layer already says what the last one will. Point at a cell, or use the arrow keys in the table.";
}

// --- ablation ---

{
  const { change, target, logprob, asked, seconds } = data.ablation,
    PARTS = HEADS + 1;
  const largest = Math.max(1e-9, ...change.flat().map(Math.abs));
  $("target").textContent = visible(target);
  $("ablation-title").textContent =
    `${visible(target)} has log-probability ${signed(logprob)} (${percent(Math.exp(logprob))})${asked ? "" : ", the likeliest next word"}. ${LAYERS * PARTS} ablations took ${seconds.toFixed(1)} s. Choose a head to see its map above.`;
  $("ablation-low").textContent = `−${largest.toFixed(2)} nats`;
  $("ablation-high").textContent = `+${largest.toFixed(2)}, square-root scale`;
  drawRamp($("ablation-ramp"), "d");
  const CELL = Math.max(19, Math.min(30, Math.floor(690 / LAYERS))),
    LEFT = 34,
    TOP = 22;
  const map = svgMap(PARTS, LAYERS, CELL, LEFT, TOP);
  map.svg.setAttribute(
    "aria-label",
    "Ablation: layers from left to right, heads and the MLP from top to bottom. Arrow keys move, Enter shows a head's map.",
  );
  map.svg.setAttribute("aria-describedby", "ablation-readout");
  map.svg.id = "ablation-map";
  for (let layer = 0; layer < LAYERS; layer++)
    if (LAYERS <= 12 || layer % 5 === 0)
      map.svg.append(make("text", { class: "minor", x: LEFT + (layer + 0.5) * CELL, y: 14, "text-anchor": "middle" }, String(layer)));
  for (let part = 0; part < PARTS; part++) {
    if (part === HEADS || HEADS <= 16 || part % 4 === 0)
      map.svg.append(
        make(
          "text",
          { class: "minor", x: LEFT - 6, y: TOP + (part + 0.5) * CELL + 4, "text-anchor": "end" },
          part < HEADS ? String(part) : "MLP",
        ),
      );
    for (let layer = 0; layer < LAYERS; layer++) {
      map.draw(part, layer);
      const value = change[layer][part]; // the square root: one part often outweighs all others together
      map.cells[part][layer].setAttribute(
        "class",
        `cell d${Math.round((LEVELS / 2) * (1 + Math.sign(value) * Math.sqrt(Math.abs(value) / largest)))}`,
      );
    }
  }
  map.svg.append(map.frame);
  $("ablation-box").append(map.svg);
  cursor(
    map.svg,
    PARTS,
    LAYERS,
    cellOf,
    (part, layer) => {
      map.mark(part, layer);
      reveal($("ablation-box"), LEFT + layer * CELL, LEFT + (layer + 1) * CELL);
      const value = change[layer][part];
      $("ablation-readout").replaceChildren(
        "Without ",
        make("b", {}, part < HEADS ? `head ${part} of layer ${layer}` : `the MLP of layer ${layer}`),
        ": log-probability ",
        make("b", {}, `${signed(value)} nats`),
        `, probability ${percent(Math.exp(logprob + value))} instead of ${percent(Math.exp(logprob))}.`,
      );
    },
    (part, layer) => {
      if (part < HEADS) showHead(layer, part);
    },
  );
  const strongest = change
    .flatMap((row, layer) => row.map((value, part) => [value, layer, part]))
    .sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]))
    .slice(0, 3);
  $("ablation-readout").textContent =
    `Strongest: ${strongest.map(([value, layer, part]) => `${part < HEADS ? `head ${layer}.${part}` : `MLP ${layer}`} ${signed(value)}`).join(", ")} nats. Point at a cell, or use the arrow keys in the map.`;
}

activate(pinned);
document.documentElement.dataset.ready = "true";
