"""Plain functions that measure data, choices and policies; nothing is trained here."""
