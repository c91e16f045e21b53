"""The commands of ``gunicorn-cluster``, one module for each.

``add(commands)`` adds the command's parser to argparse's subparsers, with ``run`` as its default
``run``; ``run(options)`` does it and returns the exit status. Only the module of the command that
was given is imported.
"""
