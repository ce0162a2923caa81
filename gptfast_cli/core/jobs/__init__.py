"""Jobs: what each command does, as a generator of events that returns a frozen result. One file for each command."""
