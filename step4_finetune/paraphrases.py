"""Ways to say the same: requests around a question, several questions as one, descriptions, and refusals.

What is here is independent of any function; the questions themselves are templates in step4_finetune/domains/.
"""

import re
from random import Random

# First words of requests that are orders. Only these may be lower-cased and built into a longer sentence.
ORDERS = frozenset({
    "add", "adopt", "analyze", "apply", "area", "balance", "bill", "block", "book", "borrow", "build", "buy",
    "calculate", "cancel", "change", "check", "cluster", "combine", "compare", "compress", "compute", "conjugate",
    "convert", "correct", "count", "create", "cross", "customer", "deal", "delete", "describe", "determine",
    "differentiate", "download", "draft", "draw", "email", "enroll", "estimate", "evaluate", "expand", "explain",
    "fetch", "file", "find", "fit", "fly", "forecast", "format", "forward", "freeze", "generate", "get", "give",
    "hash", "insert", "integrate", "keep", "launch", "list", "locate", "log", "look", "make", "merge", "move",
    "name", "open", "order", "organize", "pick", "ping", "plan", "play", "plot", "post", "print", "project", "put",
    "quote", "read", "record", "remind", "rename", "rent", "replace", "report", "request", "resize", "restart",
    "retrieve", "return", "reverse", "roll", "round", "run", "sample", "save", "scale", "scan", "schedule",
    "search", "select", "send", "set", "show", "sort", "split", "start", "subtract", "suggest", "sum", "summarize",
    "switch", "take", "teach", "tell", "text", "throw", "track", "train", "transfer", "translate", "transpose",
    "turn", "update", "use", "verify", "work", "write",
})  # fmt: skip
QUESTIONS = frozenset({
    "what", "what's", "which", "who", "when", "where", "why", "how", "is", "are", "do", "does", "did", "can",
    "could", "will", "would", "at", "if", "in",
})  # fmt: skip

_FIRST = re.compile(r"^[\"']?([A-Za-z']+)")


def is_order(sentence: str) -> bool:
    """Whether the sentence is an order ("Find …") and not a question or a story."""
    match = _FIRST.match(sentence)
    return match is not None and match[1].lower() in ORDERS and sentence.count(". ") == 0 and "?" not in sentence


def lower_first(sentence: str) -> str:
    """Lower-case the first letter, unless the first word may be a name."""
    match = _FIRST.match(sentence)
    word = match[1].lower() if match else ""
    return sentence[0].lower() + sentence[1:] if word in ORDERS or word in QUESTIONS else sentence


CONTEXTS = (
    "I'm preparing a presentation for tomorrow.", "I'm working on a project.", "I need this for my homework.",
    "We are comparing a few options.", "I promised my boss some figures.", "My sister and I argued about this.",
    "I'm planning my week.", "I'm helping a friend.", "Imagine you are my assistant.", "I'm writing an article.",
    "There's a lot to do today.", "We have a meeting in an hour.", "I'm new here and need some help.",
    "I'm checking some numbers.", "This is for a client of mine.", "I'm double-checking my notes.",
    "I have been thinking about this all day.", "My teacher gave me an exercise.", "I'm curious about something.",
)  # fmt: skip


def say(sentence: str, rng: Random) -> str:
    """Say one request in one of many ways; half of the time as it is."""
    if rng.random() < 0.5:
        return sentence if rng.random() < 0.85 else sentence.rstrip(".?")
    if rng.random() < 0.15:
        return f"{rng.choice(CONTEXTS)} {sentence}"
    core = lower_first(sentence.rstrip("."))
    if is_order(sentence):
        return rng.choice([
            f"Please {core}.", f"Can you {core}?", f"Could you please {core}?", f"I need you to {core}.",
            f"Could you {core} for me?", f"Help me {core}.", f"I want to {core}.", f"{sentence} Thanks!",
            f"Hi, can you {core}?", f"Would you {core}?", f"I'd like you to {core}.", f"Hey, {core}.",
        ])  # fmt: skip
    end = "" if sentence.endswith(("?", ".")) else "."
    low = lower_first(sentence)
    return rng.choice([
        f"Hi! {sentence}", f"Hello, {low}", f"I have a question: {low}", f"{sentence}{end} Thank you.",
        f"Quick question: {low}", f"For my report: {low}", f"I wonder, {low}", f"Tell me, {low}",
        f"My friend asks: {low}",
    ])  # fmt: skip


_OPENINGS = (
    "I have a few requests.", "Can you help me with a few things?", "I have several tasks for you today.",
    "There are some things I want to find out.",
)  # fmt: skip
_LEADS = (
    "Another thing:", "One more thing:", "On another note,", "At the same time,", "While you are at it,",
    "I also have this:", "Besides that,", "And then there is this:",
)  # fmt: skip


def say_together(sentences: list[str], rng: Random) -> str:
    """Put several requests into one message."""
    cores = [lower_first(s.rstrip(".")) for s in sentences]
    if all(is_order(s) for s in sentences) and rng.random() < 0.7:
        last = rng.choice(["and", "and then", "and finally", "and also"])
        joined = (
            ", ".join(cores[:-1]) + (f", {last} " if len(cores) > 2 or rng.random() < 0.4 else f" {last} ") + cores[-1]
        )
        return rng.choice(
            [
                f"Please {joined}.",
                f"Can you {joined}?",
                f"I need you to {joined}.",
                f"{joined[0].upper()}{joined[1:]}.",
                f"Could you {joined}?",
            ]
        )
    whole = [s if s.endswith((".", "?", "!")) else f"{s}." for s in sentences]
    style = rng.random()
    if style < 0.3:
        links = ["First,", *rng.sample(["Then,", "After that,", "Next,"], len(whole) - 2), "Finally,"]
        text = " ".join(f"{link} {lower_first(s)}" for link, s in zip(links, whole, strict=True))
    elif style < 0.6:
        links = rng.choice([["Also,", "And", "Also,"], ["Then,", "Additionally,", "And"], ["And", "Also,", "Besides,"]])
        text = " ".join([whole[0], *(f"{link} {lower_first(s)}" for link, s in zip(links, whole[1:], strict=False))])
    elif style < 0.7:
        text = " ".join(f"{number}) {s}" for number, s in enumerate(whole, 1))
    elif style < 0.85:
        leads = rng.sample(_LEADS, len(whole) - 1)
        text = " ".join([whole[0], *(f"{lead} {lower_first(s)}" for lead, s in zip(leads, whole[1:], strict=True))])
    else:
        text = " ".join(whole)
    if rng.random() < 0.35:
        text = f"{rng.choice([*_OPENINGS, *CONTEXTS])} {text}"
    return f'"{text}"' if '"' not in text and rng.random() < 0.1 else text


_SWAPS = (
    ("Calculate", ("Compute", "Calculates", "Determine", "Work out")),
    ("Get", ("Retrieve", "Fetch", "Look up", "Returns")),
    ("Find", ("Search for", "Locate", "Finds")), ("List", ("Return a list of", "Show")), ("Check", ("Find out",)),
    ("Estimate", ("Give an estimate of", "Estimates")), ("Create", ("Make", "Set up")), ("Book", ("Reserve",)),
    ("Number of", ("How many", "The number of", "Count of")), ("Name of", ("The name of", "Name of")),
    ("Length", ("The length",)), ("Whether to", ("If true,", "Whether to")), ("Day", ("The date", "Date")),
    ("Amount", ("The amount", "Sum")), ("Highest price", ("Maximum price", "Price limit")),
)  # fmt: skip


def reword(text: str, rng: Random) -> str:
    """Reword the beginning of a description now and then."""
    for start, others in _SWAPS:
        if text.startswith(start + " ") and rng.random() < 0.6:
            other = rng.choice(others)
            # "Find out whether" reads right after "Check", "Locate whether" would not: only plain objects are swapped.
            return (
                text
                if text[len(start) :].startswith((" whether", " how", " who", " when", " where", " why"))
                else other + text[len(start) :]
            )
    return text


# First words of descriptions that are no nouns: "The" does not go before them.
_NO_NOUN = frozenset({
    "the", "a", "whether", "how", "which", "where", "if", "only", "most", "until", "who", "what", "give",
    "include", "use", "end", "return",
})  # fmt: skip


def fuller(text: str, rng: Random) -> str:
    """Turn a terse parameter description into the longer kind that developers write, now and then."""
    first = text.split()[0]
    if rng.random() < 0.6 or first.lower() in _NO_NOUN:
        return text
    return f"The {text if first.isupper() else text[0].lower() + text[1:]}"


REFUSALS = (
    "None of the available functions can do that.",
    "None of the available functions can answer this question.",
    "The available functions cannot help with this request.",
    "The given function does not fit this request.",
    "None of the given functions fits this request.",
)

SMALL_TALK = (
    ("Hi", "Hello! How can I help you?"), ("Hello there!", "Hello! How can I help you?"),
    ("Good morning", "Good morning! What can I do for you?"), ("Thanks a lot!", "You're welcome!"),
    ("Thank you, that's all.", "You're welcome! Have a nice day."),
    ("How are you?", "I'm fine, thank you! How can I help you?"),
    ("Goodbye", "Goodbye!"), ("ok", "Is there anything else I can do for you?"), ("Great job!", "Thank you!"),
    ("hey, you there?", "Yes, I'm here. How can I help you?"),
    ("Never mind.", "All right. Let me know if you need anything."),
    ("Can you help me?", "Of course. What do you need?"),
    ("I'm bored.", "I'm sorry to hear that. What would you like to do?"),
    ("Nice to meet you", "Nice to meet you too! How can I help you?"), ("What's up?", "Not much! How can I help you?"),
)  # fmt: skip


def refusal(tools: int, rng: Random) -> str:
    """One short sentence that says no tool fits. Few variants: what is to be learned is when, not how."""
    return rng.choice(REFUSALS[:4] if tools == 1 else (*REFUSALS[:3], REFUSALS[4]))


def ask_for(missing: list[str], rng: Random) -> str:
    """Ask for what a call would need. missing: the words of parameters."""
    listed = ", ".join(f"the {m}" for m in missing[:-1]) + (" and " if len(missing) > 1 else "") + f"the {missing[-1]}"
    return rng.choice([f"Please tell me {listed}.", f"I need {listed} to do that.", f"Could you give me {listed}?"])


def seeded(text: str) -> Random:
    """A random stream that depends on a text only."""
    return Random(text)
