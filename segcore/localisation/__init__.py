"""Where in an image a tag is: maps, cues, pseudo-labels, and what draws them to borders."""
