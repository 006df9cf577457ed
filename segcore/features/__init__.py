"""Features of a trunk that does not learn: fixed views of pictures, and what the trunk makes of them, kept on disk."""
