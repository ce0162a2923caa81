"""Charts as SVG, in the colours and the type of the page that they stand in: its style sheet knows their classes."""
