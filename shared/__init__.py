"""What the five steps share: artifacts, the model, the engine, the OpenAI protocol, results."""

from shared.telemetry import opt_out

opt_out()
