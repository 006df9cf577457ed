"""A finished model at work on somebody's pictures: one picture in Python, or folders of them into folders of masks."""
