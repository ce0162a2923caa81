"""One model on several ranks: processes of one machine or of many, each with a part of it."""
