"""The commands of ``gunicorn-cluster``, one module each.

``add_arguments(parser)`` adds the command's arguments to its parser, which has the module's
``PARSER_OPTIONS``, if any, and the first sentence of its docstring as the help. ``run(options)``
runs the command and returns the exit status. Only the module of the given command is imported.
"""
