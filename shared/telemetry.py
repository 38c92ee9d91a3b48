"""Nothing phones home: switch off what the libraries would otherwise report or look up.

Called by `import shared`, so it runs before any of them is imported. Values the user has set are left alone.
"""

import os

OPT_OUTS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",  # the common convention; vLLM and others obey it
    "VLLM_NO_USAGE_STATS": "1",
    "ANONYMIZED_TELEMETRY": "False",  # chromadb
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TRL_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "disabled",  # trl's trainers report there when the package is installed
    "LANGSMITH_TRACING": "false",
    "TOKENIZERS_PARALLELISM": "false",  # not telemetry: silences the warning after a fork
}


def opt_out() -> None:
    """Set every opt-out variable that is not set yet."""
    for name, value in OPT_OUTS.items():
        os.environ.setdefault(name, value)
