"""Images (and prompts) to numbers: pure functions under thin objects."""
