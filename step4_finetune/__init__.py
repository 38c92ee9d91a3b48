"""Step 4: teach the embedded model to call tools and to grade, with LoRA and DPO, and measure what that changed."""
