"""What a request will take, before anybody has counted: learned from the ones before it, per model.

Admission and rate limits must decide in microseconds, and counting tokens takes a tokenizer and the chat template. The
length of the JSON body predicts the prompt's tokens well enough, once the ratio is known: the template, JSON's own
characters and the language are the same from one request of an application to the next. The engine's counts, which
arrive with every answer, keep the two averages right.
"""

from dataclasses import dataclass

WEIGHT = 0.05  # of the newest answer: the average follows the last 20 or so


@dataclass
class Average:
    """prompt tokens per byte of body, and completion tokens per request."""

    per_byte: float = 0.25  # English text and JSON, before the first answer
    completion: float = 128.0


class Estimates:
    """Running averages per model."""

    def __init__(self) -> None:
        self._averages: dict[str, Average] = {}

    def tokens(self, model: str, body_bytes: int, most: int | None, answers: int) -> tuple[int, int]:
        """Estimated prompt and completion tokens. most: the request's max_tokens. answers: its n."""
        average = self._averages.get(model) or Average()
        expected = average.completion if most is None else min(most, average.completion)
        return max(1, round(body_bytes * average.per_byte)), max(1, round(expected * answers))

    def learn(self, model: str, body_bytes: int, prompt: int, completion: int) -> None:
        """Take a finished request's exact counts into account."""
        average = self._averages.setdefault(model, Average())
        average.per_byte += WEIGHT * (prompt / max(1, body_bytes) - average.per_byte)
        average.completion += WEIGHT * (completion - average.completion)
