"""Registers the capture hook with AI tools: the settings' text as a value (`json_text`, `registration`), and the files."""
