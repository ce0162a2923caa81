"""Everything gptfast does, and nothing a person sees: the core never prints and knows no terminal."""
