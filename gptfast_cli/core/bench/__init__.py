"""How fast a model is: cases, timing, memory bandwidth, and what hardware would allow."""
