// What both parts of the page use. What models and people wrote enters the document as text only (append, textContent);
// the page's policy makes the browser refuse everything else.

const $ = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// -- numbers for people --

const digits = (count) => new Intl.NumberFormat("en", { maximumSignificantDigits: count });
const number = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : digits(2).format(value));
const seconds = (value) => (value < 1 ? `${digits(3).format(value * 1000)} ms` : `${digits(3).format(value)} s`);
const dollars = (value) => `$${digits(3).format(value)}`;

// -- the key: in this tab's memory and in headers, never in an address --

const key = () => $("key").value.trim();
const authorization = () => (key() ? { authorization: `Bearer ${key()}` } : {});

// What the service says when it refuses: OpenAI's error shape, plus when to come back.
async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const { code, message } = body.error ?? {};
  const later = response.headers.get("retry-after");
  return `${response.status} ${code ?? ""}: ${message ?? response.statusText}${later ? ` (in ${later} s)` : ""}`;
}

