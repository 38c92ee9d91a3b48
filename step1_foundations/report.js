// The report's behaviour: draws every section from the JSON in #data. No library, no request, no inline handler.
// Whatever comes from the text or the model enters the page as textContent or attribute, never as markup.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const LEVELS = 32; // steps of a colour ramp
const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "text"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// White space drawn, as in the terminal: · space, ⏎ line end, ⇥ tab.
const visible = (piece) => piece.replaceAll(" ", "·").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
const short = (piece, most = 12) => {
  const all = [...visible(piece)];
  return all.length > most ? all.slice(0, most - 1).join("") + "…" : all.join("");
};
const percent = (p, digits = 1) =>
  (p > 0 && p < 0.5 / 10 ** (digits + 2) ? `<${(10 ** -digits).toFixed(digits)}` : (100 * p).toFixed(digits)) + " %";
const count = (n) => n.toLocaleString("en");
const bytes = (n) =>
  n >= 1e9 ? `${(n / 1e9).toFixed(1)} GB` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : n >= 1e3 ? `${(n / 1e3).toFixed(1)} kB` : `${n} B`;
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);

// A line may end between a command's words, but not after the dashes of an option.
const command = (node, text) =>
  node.replaceChildren(...text.split(/(--[a-z-]+)/).map((part, i) => (i % 2 ? make("span", { class: "option" }, part) : part)));

// --- colour ramps: sequential (viridis, its end faded into the page) and diverging (vermilion to blue) ---

const RAMPS = {
  v: {
    light: ["#f1f3ec", "#bfe0ae", "#5ec962", "#21918c", "#3b528b", "#440154"],
    dark: ["#1f242b", "#3a3f7d", "#31688e", "#21918c", "#5ec962", "#fde725"],
  },
  d: { light: ["#b04a00", "#e39257", "#f1f1ed", "#6fadd6", "#005f99"], dark: ["#ff9a5a", "#a4572a", "#262c33", "#2f6d97", "#7cc8f5"] },
};
const dark = matchMedia("screen and (prefers-color-scheme: dark)");

function colour(ramp, level, mode = dark.matches ? "dark" : "light") {
  const stops = RAMPS[ramp][mode].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const place = (level / LEVELS) * (stops.length - 1),
    at = Math.min(Math.floor(place), stops.length - 2);
  return stops[at].map((low, i) => Math.round(low + (stops[at + 1][i] - low) * (place - at)));
}

function ink([r, g, b]) {
  // black or white, whichever reads better on this colour (WCAG relative luminance)
  const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z > 0.179 ? "#111" : "#fff";
}

function rampRules(mode) {
  return Object.keys(RAMPS)
    .flatMap((ramp) =>
      Array.from({ length: LEVELS + 1 }, (_, level) => {
        const rgb = colour(ramp, level, mode);
        return `.${ramp}${level}{--c:rgb(${rgb});--t:${ink(rgb)}}`;
      }),
    )
    .join("\n");
}
// As rules, not as attributes: light, dark and print then need no redrawing.
document.head.append(make("style", {}, `${rampRules("light")}\n@media screen and (prefers-color-scheme: dark){${rampRules("dark")}}`));
const level = (weight) => Math.round(weight * LEVELS);
const drawRamp = (node, name) => node.append(...Array.from({ length: LEVELS + 1 }, (_, i) => make("b", { class: name + i })));

// --- one cursor for all grids: pointer, arrow keys, Home and End ---

function cursor(node, rows, columns, place, move, choose = () => {}) {
  // place: event → [row, column] or null. move(row, column): show it. choose(row, column): click or Enter.
  const at = [0, 0];
  const go = (row, column) => {
    at[0] = Math.min(rows - 1, Math.max(0, row));
    at[1] = Math.min(columns - 1, Math.max(0, column));
    move(at[0], at[1]);
  };
  node.addEventListener("pointermove", (event) => {
    const cell = place(event);
    if (cell && event.pointerType === "mouse") go(...cell);
  });
  node.addEventListener("click", (event) => {
    const cell = place(event);
    if (cell) {
      go(...cell);
      choose(...at);
    }
  });
  node.addEventListener("keydown", (event) => {
    const [row, column] = at;
    const keys = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [row, 0],
      End: [row, columns - 1],
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (keys[event.key]) {
      event.preventDefault();
      go(...keys[event.key]);
    }
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(...at);
    }
  });
  return { at, go };
}
const cellOf = (event) => {
  const cell = event.target.closest("[data-i]");
  return cell && [Number(cell.dataset.i), Number(cell.dataset.j)];
};
// Only the box scrolls, and only sideways: scrollIntoView would move the page under the reader's finger.
function reveal(box, left, right, fixed = 0) {
  if (left - fixed < box.scrollLeft) box.scrollLeft = left - fixed;
  else if (right > box.scrollLeft + box.clientWidth) box.scrollLeft = right - box.clientWidth;
}

function roving(container, show, choose = () => {}) {
  // a row of items: one tab stop, arrows move inside
  const items = [...container.querySelectorAll("[data-item]")];
  items.forEach((item, index) => {
    item.tabIndex = index ? -1 : 0;
    item.addEventListener("focus", () => {
      items.forEach((other) => {
        other.tabIndex = other === item ? 0 : -1;
      });
      show(index);
    });
    item.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse") show(index);
    });
    item.addEventListener("click", () => {
      show(index);
      choose(index);
    });
    item.addEventListener("keydown", (event) => {
      const to = { ArrowRight: index + 1, ArrowDown: index + 1, ArrowLeft: index - 1, ArrowUp: index - 1, Home: 0, End: items.length - 1 }[
        event.key
      ];
      if (to !== undefined && items[to]) {
        event.preventDefault();
        items[to].focus();
      }
      if (item.tagName !== "BUTTON" && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        choose(index);
      }
    });
  });
}

// --- the token that is looked at, everywhere at once ---

const tokens = data.tokens.list,
  size = tokens.length;
let pinned = size - 1,
  active = pinned;
const followers = []; // functions of the active index

function activate(index) {
  active = index;
  for (const node of document.querySelectorAll("[data-t].hot")) node.classList.remove("hot");
  for (const node of document.querySelectorAll(`[data-t="${index}"]`)) node.classList.add("hot");
  for (const follow of followers) follow(index);
}
const tokenSpan = (index, attributes = {}) =>
  make("span", { class: "piece", "data-t": index, ...attributes }, visible(tokens[index].piece));
document.addEventListener("pointerover", (event) => {
  const token = event.pointerType === "mouse" && event.target.closest("[data-t]");
  if (token) activate(Number(token.dataset.t));
});
document.addEventListener("click", (event) => {
  const token = event.target.closest("[data-t]");
  if (token) {
    pinned = Number(token.dataset.t);
    activate(pinned);
  }
});
document.addEventListener("pointerout", (event) => {
  if (event.pointerType === "mouse" && event.target.closest("[data-t]") && !event.relatedTarget?.closest?.("[data-t]")) activate(pinned);
});

// --- load ---

{
  for (const node of document.querySelectorAll("[data-command]")) command(node, data.commands[node.dataset.command]);

  const colours = ["--blue", "--orange", "--green", "--purple", "--vermilion", "--sky"];
  const parts = data.load.components.map((part, i) => ({ ...part, colour: `var(${colours[i % colours.length]})` }));
  for (const [key, title, format] of [
    ["parameters", "Parameters", count],
    ["bytes", "Bytes", bytes],
  ]) {
    const total = parts.reduce((sum, part) => sum + part[key], 0);
    const bar = make("div", {
      class: "stack",
      role: "img",
      "aria-label": parts.map((p) => `${p.name} ${percent(p[key] / total)}`).join(", "),
    });
    for (const part of parts.filter((p) => p[key]))
      bar.append(make("i", { style: `flex:${part[key] / total} 0 0;--c:${part.colour}`, title: `${part.name}: ${format(part[key])}` }));
    $("load-bars").append(make("p", { class: "small" }, `${title}: ${format(total)}`), bar);
  }
  const row = (...cells) =>
    make(
      "tr",
      {},
      make("th", { scope: "row", class: "swatch", style: `--c:${cells[0].colour}` }, cells[0].name),
      ...cells.slice(1).map((c) => make("td", {}, c)),
    );
  $("load-table").append(
    make("thead", {}, make("tr", {}, ...["component", "parameters", "bytes"].map((h) => make("th", { scope: "col" }, h)))),
    make("tbody", {}, ...parts.map((p) => row(p, count(p.parameters), bytes(p.bytes)))),
  );
  const copies = parts.reduce((sum, part) => sum + part.copy, 0);
  const facts = [
    [
      "KV cache",
      `${bytes(data.load.kv)} per token`,
      `${bytes(data.load.kv * data.load.context)} for a full context of ${count(data.load.context)} tokens`,
    ],
    ["Loading took", `${data.load.seconds.toFixed(2)} s`, "reading the weights; fetching and importing not counted"],
    ...(copies ? [["Copy for reading prompts", bytes(copies), "the same weights once more, unpacked, for many tokens at once"]] : []),
  ];
  $("load-facts").append(
    ...facts.map(([name, value, why]) => make("div", {}, make("dt", {}, name), make("dd", {}, value, make("small", {}, why)))),
  );
}

// --- tokens ---

for (const [index, token] of tokens.entries()) {
  const around = token.source !== "text";
  const chip = make(
    "button",
    { type: "button", class: around ? "chip around" : "chip", "data-t": index, "data-item": "" },
    make("span", { class: "piece" }, visible(token.piece)),
    make("small", {}, String(token.id)),
    make("small", {}, token.span ? `bytes ${token.span[0]}–${token.span[1]}` : "no bytes"),
  );
  $("chips").append(chip);
}
roving($("chips"), activate, (index) => {
  pinned = index;
});
followers.push((index) => {
  const token = tokens[index],
    n = token.bytes ? token.bytes.split(" ").length : 0;
  [...$("chips").children].forEach((chip, i) => chip.setAttribute("aria-pressed", String(i === pinned)));
  const kind = token.special
    ? ", a control token"
    : token.source === "template"
      ? ", put there by the chat template"
      : token.source === "added"
        ? ", added by the tokenizer"
        : "";
  $("token-readout").replaceChildren(
    make("b", { class: "piece" }, visible(token.piece)),
    ` at position ${index} is number ${count(token.id)} of a vocabulary of ${count(data.tokens.vocabulary)}${kind}. ${n} byte${n === 1 ? "" : "s"}: ${token.bytes.slice(0, 95)}. `,
    make("br"),
    `This text: ${data.tokens.rate.toFixed(2)} characters per token.`,
  );
});

// --- continuation: after the sections that need more code, but it needs none of it ---

{
  const story = data.continuation,
    box = $("story");
  // The same thresholds as `generate --explain`; "default" means the text's own colour.
  const tint = (p) => {
    const found = story.sureness.find(([least]) => p >= least)[1];
    return found === "default" ? "transparent" : found;
  };
  $("sureness").append(
    ...story.sureness.map(([least, name]) =>
      make(
        "li",
        { style: `--c:${name === "default" ? "transparent" : name}` },
        least ? `${percent(least, 0)} or more` : `less, down to ${percent(0, 0)}`,
      ),
    ),
  );
  box.append(make("span", { class: "before" }, tokens.map((t) => t.piece).join("")));
  story.tokens.forEach((token, index) =>
    box.append(
      make(
        "span",
        { "data-s": index, "data-item": "", style: `--c:${tint(token.probability)}` },
        token.special ? ` ${token.piece}` : token.piece,
      ),
    ),
  );
  const endings = { length: "It was stopped after this many tokens.", stop: "The model ended the text itself." };
  const rest = () => `${story.tokens.length} tokens. ${endings[story.finish] || ""}`;
  $("story-readout").textContent = rest();
  roving(box, (index) => {
    const token = story.tokens[index];
    for (const node of box.querySelectorAll(".hot")) node.classList.remove("hot");
    box.querySelector(`[data-s="${index}"]`).classList.add("hot");
    const others = token.top
      .filter(([piece]) => piece !== token.piece)
      .slice(0, 2)
      .map(([piece, p]) => `${visible(piece)} ${percent(p)}`);
    $("story-readout").replaceChildren(
      make("b", { class: "piece" }, visible(token.piece)),
      ` had ${percent(token.probability)}. Next likeliest: ${others.join(", ") || "nothing"}. `,
      make("br"),
      rest(),
    );
  });
}
