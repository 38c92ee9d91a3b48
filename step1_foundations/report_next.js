// The report's next-token section: sliders that filter the distribution in the page.
"use strict";

// --- next token: shared/sampling.py's filtered_probabilities, on logits that are sorted already ---

const ENTRIES = [
  ...data.next.logits.map((logit) => ({ logit, n: 1 })),
  ...data.next.rest.map((logit, i) => ({ logit, n: i === data.next.rest.length - 1 ? data.next.last : data.next.group })),
];

// Entries are { logit, n }: n tokens of this logit. Returns { p: of one token per entry, kept: tokens left, entropy in bits }.
function filtered({ temperature, topK, topP, minP }) {
  if (temperature === 0) return { p: ENTRIES.map((_, i) => (i ? 0 : 1)), kept: 1, entropy: 0 };
  let p = ENTRIES.map(({ logit }) => Math.exp(logit / temperature)),
    n = ENTRIES.map((entry) => entry.n);
  const total = () => p.reduce((sum, value, i) => sum + value * n[i], 0);
  if (topK > 0) {
    let left = topK;
    n = n.map((m) => {
      const take = Math.min(m, left);
      left -= take;
      return take;
    });
  }
  let mass = total();
  p = p.map((value) => Math.fround(value / mass)); // the sampler works in float32, where the far tail is exactly zero
  n = n.map((m, i) => (p[i] ? m : 0));
  if (topP < 1) {
    let before = 0; // a token stays while the mass before it is below top-p
    n = n.map((m, i) => {
      const stay = Math.max(0, Math.min(m, Math.ceil((topP - before) / p[i] - 1e-9)));
      before += m * p[i];
      return stay;
    });
    p = p.map((value, i) => (n[i] ? value : 0));
  }
  if (minP > 0) {
    const least = minP * p[0];
    n = n.map((m, i) => (p[i] >= least ? m : 0));
  }
  mass = total();
  p = p.map((value, i) => (n[i] ? value / mass : 0));
  const entropy = -p.reduce((sum, value, i) => sum + (value ? n[i] * value * Math.log2(value) : 0), 0);
  return { p, kept: n.reduce((a, b) => a + b, 0), entropy: Math.max(0, entropy) };
}

{
  const SHOWN = Math.min(12, data.next.ids.length);
  const STOPS = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 0].filter((k) => k <= data.next.ids.length);
  const CONTROLS = [
    // id, name in `filtered`, lowest, highest, step, neutral value, slider position → value, how it reads
    ["temperature", "temperature", 0, 2, 0.05, 1, (x) => x, (v) => (v ? v.toFixed(2) : "0, greedy")],
    ["top-k", "topK", 0, STOPS.length - 1, 1, STOPS.length - 1, (x) => STOPS[x], (v) => (v ? String(v) : "off")],
    ["top-p", "topP", 0.05, 1, 0.01, 1, (x) => x, (v) => (v < 1 ? v.toFixed(2) : "off")],
    ["min-p", "minP", 0, 0.5, 0.01, 0, (x) => x, (v) => (v ? v.toFixed(2) : "off")],
  ];
  const neutral = filtered({ temperature: 1, topK: 0, topP: 1, minP: 0 });
  const rows = Array.from({ length: SHOWN + 1 }, (_, i) => {
    const rest = i === SHOWN,
      piece = rest ? "all others" : visible(data.next.pieces[i]);
    const raw = make("i", { class: "raw" }),
      drawn = make("i", { class: "drawn" }),
      value = make("span", { class: "value" });
    const where = rest ? -1 : tokens.findLastIndex((token) => token.id === data.next.ids[i]);
    const label = make(
      "span",
      rest ? { class: "small", style: "justify-self:end" } : { class: "piece", title: `id ${data.next.ids[i]}` },
      piece,
    );
    const line = make(
      "li",
      { class: rest ? "rest" : "", "data-t": where < 0 ? null : where },
      label,
      make("span", { class: "bar" }, raw, drawn),
      value,
    );
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
    $("next-statistics").textContent =
      `Entropy ${neutral.entropy.toFixed(2)} bits, ${result.entropy.toFixed(2)} as drawn; ${count(result.kept)} token${result.kept === 1 ? "" : "s"} can be drawn`;
    $("next-statistics").dataset.entropy = result.entropy;
    $("next-statistics").dataset.kept = result.kept;
    const options = [
      ["temperature", settings.temperature, 1],
      ["top-k", settings.topK, 0],
      ["top-p", settings.topP, 1],
      ["min-p", settings.minP, 0],
    ]
      .filter(([, value, off]) => value !== off)
      .map(([name, value]) => ` --${name} ${value}`)
      .join("");
    command($("next-command"), data.commands.next + options);
    const wanted = data.next.target;
    $("next-note").textContent =
      `A full bar is ${percent(full, 0)}. The page holds the ${count(data.next.ids.length)} likeliest tokens one by one and all others in sorted groups of ${data.next.group}, so it computes this here, at every setting.` +
      (wanted
        ? ` The target ${visible(wanted.text)} has rank ${count(wanted.rank)} and probability ${percent(wanted.probability, 2)}.`
        : "");
  };
  const reset = () => {
    for (const [id, , , , , off] of CONTROLS) $(id).value = off;
    update();
  };
  for (const [id, , low, high, step] of CONTROLS) {
    Object.assign($(id), { min: low, max: high, step });
    $(id).addEventListener("input", update);
  }
  $("reset").addEventListener("click", reset);
  reset();
}
