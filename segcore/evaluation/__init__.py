"""From a picture to a class per pixel, and how good that is."""
