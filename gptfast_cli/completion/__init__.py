"""The shells' completion: the scripts that ask, and the answers, which come from the command tree alone.

A script sets `_GPTFAST_COMPLETE` to the command line up to the cursor, quoted as in a POSIX shell, and runs the
program; an argument, where there is one, is the end of that line which the shell will replace. The answer's first line
says which paths the shell should offer (`none`, `files` or `folders`), each other one is a value, a tab, and its help.
"""
