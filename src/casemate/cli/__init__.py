"""Command-line tools: one module a tool, main(argv) -> exit status.

::

    qvm-ls … ──> entry.py ──> qvm_ls.py            a parser (tool.py) and a body: arguments in, calls of the client out
    casemate …      |         casemate.py          commands that belong to no single qube
                    |            |
                    |            +── table.py, json_output.py      what is written: for people, for programs
                    |            +── colour.py, progress.py        on a terminal only
                    |            +── calling.py, report.py         calls into qubes, told to who watches
                    |
                    +── complete.py                what Tab needs, and imports nothing else

    declarations.py     reads the parsers of all tools, for what is written from them:
        reference.py        docs/reference/tools.md, and json.md by json_schemas.py
        manual.py           manual pages
        completion.py       the table that complete.py goes by, and the lines that shells need

Most of the time of a tool is its imports, so each module imports late what is seldom needed. The lower three import
every tool, and no tool imports them, but for ``casemate completion``.

A tool's parser is its only declaration: help, pages, manual and completion follow from it. A value is named by its
metavar (VMNAME, PROPERTY, FILE, …), by which completion knows what it may be.
"""
