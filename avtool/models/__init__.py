"""Networks that turn features into proposals; nothing heavy is imported here."""
