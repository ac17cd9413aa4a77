"""Features of a user's images and texts, in files: extracted part by part, and read back."""
