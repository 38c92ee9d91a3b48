// The playground: one conversation with a model of this service.

const EXAMPLE = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather in a city, now or on one of the next days.",
      parameters: {
        type: "object",
        properties: {
          city: { type: "string" },
          days_ahead: { type: "integer", description: "0 is today" },
        },
        required: ["city"],
      },
    },
  },
];
const QUESTION = "What will the weather in Lisbon be like tomorrow?";

let cards = []; // of /v1/models
let messages = []; // the conversation, as the API wants it
let running = null; // the AbortController of the answer that is being written
let again = 0; // the timer that asks for the models again

// -- key, models, adapters --

async function loadModels() {
  clearTimeout(again);
  sessionStorage.setItem("api-key", key());
  try {
    const response = await fetch("/v1/models", { headers: authorization() });
    if (!response.ok) throw new Error(await refusal(response));
    cards = (await response.json()).data.filter((card) => card.id !== $("model").dataset.embeddings);
    keyNote(cards.length ? "Kept in this tab until it is closed." : "No engine is ready yet.", false);
    if (!cards.length) again = setTimeout(loadModels, 2000);
  } catch (error) {
    cards = [];
    keyNote(error.message, true);
  }
  const names = cards.map((card) => card.id);
  // vLLM's cards of adapters name the model they belong to.
  choose($("model"), cards.filter((card) => !names.includes(card.parent)).map((card) => card.id), []);
  showAdapters();
}

function showAdapters() {
  const fitting = cards.filter((card) => card.parent && card.parent === $("model").value);
  choose($("adapter"), fitting.map((card) => card.id), [new Option("none", "")]);
}

function choose(select, names, first) {
  const before = select.value;
  select.replaceChildren(...first, ...names.map((name) => new Option(name)));
  select.disabled = names.length === 0;
  if (names.includes(before)) select.value = before;
  if (!select.options.length) select.append(new Option(key() ? "none" : "needs a key", ""));
}

function keyNote(text, wrong) {
  $("key-note").textContent = text;
  $("key-note").classList.toggle("bad", wrong);
  $("key").setAttribute("aria-invalid", wrong);
}

// -- one request --

function settings() {
  const body = { model: $("adapter").value || $("model").value, stream: true };
  if (!body.model) throw new Error(key() ? "There is no model to talk to." : "Enter an API key first.");
  const system = $("system").value.trim();
  body.messages = system ? [{ role: "system", content: system }, ...messages] : messages;
  for (const [name, id] of [["temperature", "temperature"], ["max_tokens", "most"]]) {
    if (!$(id).checkValidity()) throw new Error(`${name}: ${$(id).validationMessage}`);
    if ($(id).value !== "") body[name] = $(id).valueAsNumber;
  }
  const tools = readTools();
  if (tools.length) Object.assign(body, { tools, tool_choice: $("choice").value });
  return body;
}

function readTools() {
  $("tools-error").textContent = "";
  try {
    const tools = JSON.parse($("tools").value.trim() || "[]");
    if (!Array.isArray(tools)) throw new Error("it must be a list");
    return tools;
  } catch (error) {
    $("tools-part").open = true;
    $("tools-error").textContent = `Not usable: ${error.message}`;
    $("tools").focus();
    throw new Error("The tools are not valid JSON.");
  }
}

// The JSON of each event of a stream; [DONE] ends it.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The answer broke off.");
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      if (data !== part) yield JSON.parse(data);
    }
  }
}

async function ask() {
  const [view, conversation] = [new Answer(), messages];
  const message = { role: "assistant", content: "" };
  const stopper = new AbortController();
  running = stopper;
  busy(true);
  let id = null;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", ...authorization() },
      body: JSON.stringify(settings()),
      signal: stopper.signal,
    });
    if (!response.ok) throw new Error(await refusal(response));
    id = response.headers.get("x-request-id");
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(`${event.error.code}: ${event.error.message}`);
      const delta = event.choices?.[0]?.delta ?? {};
      message.content += delta.content ?? "";
      for (const part of delta.tool_calls ?? []) addCall(message, part);
      view.show(message);
    }
    say("The answer is complete.");
  } catch (error) {
    delete message.tool_calls; // half a call is none
    if (stopper.signal.aborted) view.end({ class: "note" }, "Stopped.");
    else view.end({ class: "bad", role: "alert" }, error.message);
    say(stopper.signal.aborted ? "Stopped." : "");
  }
  if (message.content || message.tool_calls) conversation.push(message);
  else takeBack(conversation);
  if (running === stopper) {
    running = null;
    busy(false);
  }
  if (id) view.facts(await account(id, stopper.signal.aborted), id);
}

// A tool call comes in pieces: its name first, then its arguments' JSON bit by bit.
function addCall(message, { index = 0, id, function: part = {} }) {
  message.tool_calls ??= [];
  const call = (message.tool_calls[index] ??= { id, type: "function", function: { name: "", arguments: "" } });
  call.function.name += part.name ?? "";
  call.function.arguments += part.arguments ?? "";
}

// Nothing came: the question is not part of the conversation, and can be sent again.
function takeBack(conversation) {
  if (conversation.at(-1)?.role !== "user") return;
  const { content } = conversation.pop();
  if (conversation === messages) $("message").value ||= content;
}

// What the service has put down for a request. A stopped one is settled when the engine has said how far it came.
async function account(id, stopped) {
  for (const wait of stopped ? [500, 1000, 2000, 4000] : [0, 1000]) {
    await pause(wait);
    const response = await fetch(`/v1/usage/${encodeURIComponent(id)}`, { headers: authorization() }).catch(() => null);
    if (response?.ok) return response.json();
  }
  return null;
}

// -- what is seen --

class Answer {
  constructor() {
    this.text = element("p", { class: "text" });
    this.calls = element("div", { class: "calls" });
    this.box = element("article", { class: "answer" }, this.text, this.calls);
    addToLog(this.box);
  }

  show(message) {
    following(() => {
      this.text.textContent = message.content;
      this.calls.replaceChildren(...(message.tool_calls ?? []).map(callCard));
    });
  }

  // It ended early, and why.
  end(attributes, text) {
    following(() => {
      for (const form of this.calls.querySelectorAll(".row")) form.remove();
      this.box.append(element("p", attributes, text));
    });
  }

  facts(row, id) {
    const facts = [["Request", element("code", {}, id)]];
    if (row) {
      const writing = row.seconds - row.first_token;
      const speed = row.first_token !== null && row.completion > 1 && writing > 0 ? (row.completion - 1) / writing : null;
      facts.unshift(
        ["Prompt", `${row.prompt} tokens${row.cached ? `, ${row.cached} cached` : ""}`],
        ["Answer", `${row.completion} tokens${row.estimated ? " (estimated)" : ""}`],
        ["First token", row.first_token === null ? "none" : seconds(row.first_token)],
        ["Speed", speed === null ? "–" : `${number(speed)} tokens/s`],
        ["Cost", row.cost === null ? "no price" : dollars(row.cost)],
      );
    }
    const pairs = facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
    following(() => this.box.append(element("dl", { class: "facts" }, ...pairs)));
  }
}

function callCard(call) {
  let given;
  try {
    given = JSON.parse(call.function.arguments);
  } catch {
    given = null; // not complete yet, or not JSON at all
  }
  const body =
    given && typeof given === "object"
      ? element("dl", {}, ...Object.entries(given).flatMap(([name, value]) => [
          element("dt", {}, name), element("dd", {}, typeof value === "string" ? value : JSON.stringify(value)),
        ]))
      : element("pre", {}, call.function.arguments);
  const head = element("p", {}, element("span", { class: "overline" }, "Tool call"), " ", element("b", {}, call.function.name));
  const result = element("input", { "aria-label": `Result of ${call.function.name}`, placeholder: "what the tool returns", "data-call": call.id });
  const answer = element("p", { class: "row" }, result, element("button", { type: "button" }, "Send result"));
  answer.lastChild.addEventListener("click", sendResults);
  result.addEventListener("keydown", (event) => event.key === "Enter" && sendResults());
  return element("div", { class: "call" }, head, body, answer);
}

function addToLog(box) {
  following(() => $("log").append(box));
}

// Change the conversation, and keep its end in sight if it was.
function following(change) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function busy(on) {
  const focused = document.activeElement;
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("log").setAttribute("aria-busy", on); // screen readers read the answer when it is complete
  if (on) say("Answering.");
  if (focused === $("send")) $("stop").focus();
  if (focused === $("stop")) $("message").focus();
}

function say(text) {
  $("state").textContent = text;
}

// -- what people do --

function send() {
  const text = $("message").value.trim();
  if (running || !text) return;
  closeCalls();
  messages.push({ role: "user", content: text });
  addToLog(element("p", { class: "asked" }, element("span", { class: "hidden" }, "You: "), text));
  $("message").value = "";
  ask();
}

function sendResults() {
  if (!running && closeCalls()) ask();
}

// The API wants a result for every call before anything else is said.
function closeCalls() {
  const open = [...$("log").querySelectorAll("[data-call]:enabled")];
  for (const field of open) {
    messages.push({ role: "tool", tool_call_id: field.dataset.call, content: field.value });
    field.disabled = true;
    field.nextSibling.remove();
  }
  return open.length > 0;
}

function startAfresh() {
  running?.abort();
  running = null;
  messages = [];
  $("log").replaceChildren();
  busy(false);
  $("message").focus();
}

$("settings").addEventListener("submit", (event) => event.preventDefault());
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
$("stop").addEventListener("click", () => running?.abort());
$("fresh").addEventListener("click", startAfresh);
$("key").addEventListener("change", loadModels);
$("key").addEventListener("input", () => /^sk-[0-9a-f]{8}-[\w-]{43}$/.test(key()) && loadModels());
$("model").addEventListener("change", showAdapters);
$("example").addEventListener("click", () => {
  $("tools").value = JSON.stringify(EXAMPLE, null, 2);
  readTools();
  $("message").value ||= QUESTION;
});

$("key").value = sessionStorage.getItem("api-key") ?? "";
if (key()) loadModels();

