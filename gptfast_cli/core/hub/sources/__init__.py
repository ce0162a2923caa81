"""Where models come from; one file each: what there is, and how to open one of its files at an offset."""
