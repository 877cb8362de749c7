"""Schema steps, numbered and frozen once released."""
