"""What the five steps share: artifacts, the model, the engine, the OpenAI protocol, results."""
