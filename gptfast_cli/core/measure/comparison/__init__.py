"""A model beside another one, the reference, on the same text."""
