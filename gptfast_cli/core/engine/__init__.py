"""From a MODEL to text: loading, sampling, requests, and the engine that runs them."""
